import ssl
import subprocess

import pytest
from support.tls import make_certificate

from model.redis_tls import tls_context


@pytest.fixture
def files(tmp_path):
    certificate, key = make_certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    other = tmp_path / "other"
    other.mkdir()
    stranger, _ = make_certificate(other)
    junk = tmp_path / "junk.pem"
    junk.write_bytes(b"junk")
    torn = tmp_path / "torn.pem"
    torn.write_bytes(certificate.read_bytes()[:200])
    locked = tmp_path / "locked.pem"
    command = ("openssl", "ec", "-in", key, "-aes256", "-passout", "pass:word", "-out", locked)
    subprocess.run(command, check=True, capture_output=True)
    found = {"certificate": certificate, "key": key, "both": both, "stranger": stranger, "junk": junk, "torn": torn}
    return found | {"locked": locked, "folder": tmp_path, "nothing": tmp_path / "nothing", None: None}


@pytest.mark.parametrize("names", [("certificate", None, None), (None, "certificate", "key"), (None, "both", None)])
def test_good_files_make_a_context_that_checks_names(files, names):
    context = tls_context(*(files[name] for name in names))
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("names", "setting"),
    [
        (("nothing", None, None), "WILLBUY_REDIS_CA_FILE"),
        (("junk", None, None), "WILLBUY_REDIS_CA_FILE"),
        (("torn", None, None), "WILLBUY_REDIS_CA_FILE"),
        (("folder", None, None), "WILLBUY_REDIS_CA_FILE"),
        (("key", None, None), "WILLBUY_REDIS_CA_FILE"),
        ((None, "nothing", "key"), "WILLBUY_REDIS_CERT_FILE"),
        ((None, "junk", "key"), "WILLBUY_REDIS_CERT_FILE"),
        ((None, "certificate", None), "WILLBUY_REDIS_CERT_FILE"),
        ((None, "certificate", "nothing"), "WILLBUY_REDIS_KEY_FILE"),
        ((None, "certificate", "junk"), "WILLBUY_REDIS_KEY_FILE"),
        ((None, "stranger", "key"), "WILLBUY_REDIS_KEY_FILE"),
        ((None, "certificate", "locked"), "WILLBUY_REDIS_KEY_FILE"),
        ((None, None, "key"), "WILLBUY_REDIS_KEY_FILE"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_setting_in_one_line(files, names, setting):
    with pytest.raises(ValueError, match=f"^{setting}: ") as raised:
        tls_context(*(files[name] for name in names))
    assert "\n" not in str(raised.value)
