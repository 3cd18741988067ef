"""The properties file of `willbuy consume`."""

import pytest

from app.kafka.options import KafkaOptions, kafka_options, read_properties
from app.kafka.sink import check_clients

SECRET = "hush-0123456789"


@pytest.fixture
def read(tmp_path):
    """Read a properties file of this text."""

    def read_text(text):
        file = tmp_path / "client.properties"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_properties(file)

    return read_text


def options(tmp_path, text="", **changed):
    file = tmp_path / "client.properties"
    file.write_text(text)
    given = {"topic": "events", "brokers": "one:9092", "group": "willbuy", "scores": None, "dead_letters": None}
    return kafka_options(**given | {"file": file} | changed)


def test_a_file_has_a_property_a_line_and_comments(read):
    text = "# of Kafka\r\n! too\n\n  sasl.username = willbuy \nsasl.password=a=b#c!\n\tssl.ca.location=\n"
    assert read(f"{text}client.id=x\nclient.id=y\n") == {
        "sasl.username": "willbuy",
        "sasl.password": "a=b#c!",
        "ssl.ca.location": "",
        "client.id": "y",
    }


@pytest.mark.parametrize("line", [SECRET, f"={SECRET}", f"sasl.password: {SECRET}", f" \t={SECRET}"])
def test_a_line_that_is_no_property_is_named_by_its_number_alone(read, line):
    with pytest.raises(ValueError, match=r"client\.properties, line 2: expected name=value$") as caught:
        read(f"# one\n{line}\n")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["enable.auto.commit", "enable.auto.offset.store"])
def test_the_client_commits_by_itself(read, name):
    with pytest.raises(ValueError, match=f"line 1: {name} is not yours to set"):
        read(f"{name}=true")


def test_a_file_that_cannot_be_read_is_named(read, tmp_path):
    with pytest.raises(ValueError, match="missing cannot be read"):
        read_properties(tmp_path / "missing")
    with pytest.raises(ValueError, match=r"client\.properties cannot be read"):
        read(b"sasl.password=\xff\n")


def test_options_of_the_command_come_before_those_of_the_file(tmp_path):
    found = options(tmp_path, "bootstrap.servers=two:9092\ngroup.id=shop\n")
    assert (found.properties["bootstrap.servers"], found.properties["group.id"]) == ("one:9092", "shop")
    assert found.dead_letters == "events-dead-letters"
    found = options(tmp_path, "bootstrap.servers=two:9092\n", brokers=None, dead_letters="bad", scores="scores")
    assert (found.properties["bootstrap.servers"], found.properties["group.id"]) == ("two:9092", "willbuy")
    assert (found.dead_letters, found.scores) == ("bad", "scores")


@pytest.mark.parametrize("text", ["", "bootstrap.servers=\n"])
def test_there_must_be_brokers(tmp_path, text):
    with pytest.raises(ValueError, match="--brokers: expected HOST:PORT"):
        options(tmp_path, text, brokers=None)


def test_properties_change_what_is_ours_to_suggest_and_not_what_keeps_events():
    given = {"bootstrap.servers": "one:9092", "auto.offset.reset": "latest", "enable.auto.commit": "true"}
    found = KafkaOptions("events", given, None, "dead")
    consumer, producer = found.of_consumer, found.of_producer
    assert consumer["auto.offset.reset"] == "latest"
    assert consumer["partition.assignment.strategy"] == "cooperative-sticky"
    assert consumer["enable.auto.commit"] is consumer["enable.auto.offset.store"] is False
    assert producer["enable.idempotence"] is True
    assert (
        KafkaOptions("events", {"enable.idempotence": "false"}, None, "dead").of_producer["enable.idempotence"]
        == "false"
    )
    assert consumer["bootstrap.servers"] == producer["bootstrap.servers"] == "one:9092"
    assert consumer["log_level"] == producer["log_level"] == 2


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("sasl.pasword", "sasl.pasword"),
        ("session.timeout.ms", "session.timeout.ms"),
        ("security.protocol", "security.protocol"),
    ],
)
def test_a_wrong_property_is_named_and_no_password_shown(tmp_path, line, named):
    found = options(tmp_path, f"sasl.password={SECRET}\n{line}={SECRET}\n")
    with pytest.raises(ValueError, match=r"^--properties: ") as caught:
        check_clients(found)
    assert named in str(caught.value)
    assert SECRET not in str(caught.value).replace(f'"{SECRET}" for configuration property "{named}"', "")


def test_right_properties_connect_nowhere(tmp_path):
    check_clients(
        options(
            tmp_path,
            f"security.protocol=sasl_ssl\nsasl.mechanism=SCRAM-SHA-512\nsasl.username=u\nsasl.password={SECRET}\n",
        )
    )
