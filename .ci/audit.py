"""Check the versions in constraints.txt for known vulnerabilities; status 1 if there is one.

Without an advisory service the program prints `NOT AUDITED` and succeeds. pip-audit itself ends with the same status
for a vulnerability and for an advisory service that cannot be reached, as in an isolated CI.
"""

import json
import subprocess
import sys

OPTIONS = ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--format", "json"]


def main() -> int:
    """Return the status of this program."""
    found = subprocess.run(  # noqa: S603 - no part of it comes from outside
        [sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt", *OPTIONS],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        packages = json.loads(found.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError, TypeError):
        print(f"NOT AUDITED: {(found.stderr.strip().splitlines() or ['pip-audit printed nothing'])[-1]}")
        return 0
    ids = [f"{one['name']} {one['version']}: {known['id']}" for one in packages for known in one.get("vulns", ())]
    unknown = sum("skip_reason" in one for one in packages)
    print(f"{len(packages)} packages, {unknown} unknown to the advisory service, {len(ids)} vulnerabilities")
    print(*ids, sep="\n", end="\n" if ids else "")
    return 1 if ids else 0


if __name__ == "__main__":
    sys.exit(main())
