"""Ask for known holes in what constraints.txt pins; fails when there is one, and says so when nobody could be asked.

pip-audit ends with the same status for a hole and for an advisory service that is away, and CI may stand where there is
none.
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
        print(f"NOT AUDITED: {(found.stderr.strip().splitlines() or ['pip-audit said nothing'])[-1]}")
        return 0
    holes = [f"{one['name']} {one['version']}: {hole['id']}" for one in packages for hole in one.get("vulns", ())]
    unknown = sum("skip_reason" in one for one in packages)
    print(f"{len(packages)} packages, {unknown} that the advisory service does not know, {len(holes)} known holes")
    print(*holes, sep="\n", end="\n" if holes else "")
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
