"""Write docs/doctor.md from the doctor's checks: python docs/make_doctor.py."""

from pathlib import Path

from flows.doctor.checks import CHECKS

_INTRODUCTION = """# Doctor

Made from `flows/doctor/checks.py` by `docs/make_doctor.py`.

```bash
superscene doctor                    # this machine
superscene doctor RUN.yaml           # and the archive, weights and store that a run needs; --set changes settings
superscene doctor /data/superscene   # and a store: a folder, or its URL
superscene doctor --json             # the same for a program: docs/json.md
```

Each line of the answer has the name of a check, `ok`, `warn` or `fail`, what was found, and, unless all is well,
what to do. `warn`: a run may be slow, or end before it is done. `fail`: it cannot work; the exit code is 2, else 0.
A check that has nothing to look at, such as that of an archive where none is named, is left out. Nothing is changed:
where a folder is tried by writing to it, the file has no name, and is gone at once.

Starting Ray takes some seconds; all the rest takes two or three, most of which is loading torch.
"""


def doctor_page() -> str:
    """Return the page: every check, what it looks at, what to do."""
    lines = [_INTRODUCTION]
    for subject, checks in CHECKS.items():
        lines += [f"## {subject}", "", "| check | how it should be | what to do otherwise |", "|---|---|---|"]
        lines += [f"| {check.name} | {check.looks_at} | {check.advice} |" for check in checks]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("doctor.md").write_text(doctor_page(), encoding="utf-8")
