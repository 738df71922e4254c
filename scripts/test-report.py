#!/usr/bin/env python3
"""Writes target/test/report.json: what `make test` ran, what passed, what was skipped and why.

Reads the steps and skips that were noted on the way, and what the test runner left: nextest's JUnit files, or the
lines that `cargo test` printed; and what the virtual machine printed. Ends with code 1 if tests failed, if there were
none although all steps went well, or, with CI=true, if one was skipped.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml

# Tests in a module of this name are marked as ignored because another test runs them, in a process of their own.
ALONE = re.compile(r"(^|::)alone::")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=pathlib.Path, help="where the notes are and the report goes")
    parser.add_argument("--target", type=pathlib.Path, help="cargo's target directory")
    parser.add_argument("--runner", choices=["nextest", "cargo-test"])
    parser.add_argument("--exit-code", type=int, default=0, help="of everything before this script")
    parser.add_argument("--seconds", type=int, default=0)
    parser.add_argument("--self-test", action="store_true")
    arguments = parser.parse_args()
    if arguments.self_test:
        return self_test()
    ci = os.environ.get("CI") == "true"
    report = assemble(arguments.directory, arguments.target, arguments.runner, arguments.exit_code, ci)
    report["seconds"] = arguments.seconds
    report["runner_version"] = version(arguments.runner)
    report["capabilities"] = capabilities()
    write(arguments.directory / "report.json", report)
    print(f"\n==> {arguments.directory / 'report.json'}: " + in_words(report), file=sys.stderr)
    for problem in report["problems"]:
        print(f"test: {problem}", file=sys.stderr)
    return 0 if report["ok"] else 1


def assemble(directory, target, runner, exit_code, ci):
    """The report, from notes in `directory` and the runner's own in `target`. Pure apart from reading."""
    steps = lines(directory / "steps.jsonl")
    if runner == "nextest":
        tests = [test for profile in ["clock", "default"] for test in junit(target / "nextest" / profile / "junit.xml")]
        tests += ignored(directory / "ignored.json")
    else:
        tests = [test for name in ["clock.log", "tests.log"] for test in libtest(directory / name)]
    # Marked as ignored because they need another kernel: those that the virtual machine ran are not skipped.
    kernel = libtest(directory / "kernel.log")
    ran = {test["name"] for test in kernel}
    tests = [test for test in tests if test["outcome"] != "ignored" or test["name"] not in ran] + kernel
    skipped = [{"test": skip["test"], "reason": skip["reason"]} for skip in lines(directory / "skips.jsonl")]
    tests = [test for test in tests if test["outcome"] != "ignored" or not ALONE.search(test["name"])]
    skipped += [
        {"test": test["name"], "reason": test["reason"]} for test in tests if test["outcome"] == "ignored"
    ]
    problems = [f"the step \"{step['name']}\" failed" for step in steps if not step["ok"]]
    problems += [f"{test['suite']} {test['name']} failed" for test in tests if test["outcome"] == "failed"]
    if exit_code == 0 and not any(test["outcome"] == "passed" for test in tests):
        problems.append("no test was seen to pass")
    if ci:
        problems += [f"{skip['test']} was skipped, which CI does not allow: {skip['reason']}" for skip in skipped]
    if exit_code != 0 and not problems:
        problems.append(f"ended with code {exit_code} in between two steps")
    counts = {outcome: sum(test["outcome"] == outcome for test in tests) for outcome in ["passed", "failed"]}
    return {
        "v": 1,
        "ok": exit_code == 0 and not problems,
        "ci": ci,
        "runner": runner,
        "counts": {**counts, "skipped": len(skipped)},
        "problems": problems,
        "skipped": skipped,
        "not_run": lines(directory / "not-run.jsonl"),
        "steps": steps,
        "tests": tests,
    }


def lines(path):
    """The objects of a file of JSON lines; none if there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def junit(path):
    """Tests of a JUnit file. A test that nextest ran but cut off is a failure there too."""
    if not path.is_file():
        return []
    found = []
    for suite in xml.parse(path).getroot().iter("testsuite"):
        for case in suite.iter("testcase"):
            failed = case.find("failure") is not None or case.find("error") is not None
            outcome = "failed" if failed else "passed"
            seconds = float(case.get("time", 0))
            found.append(
                {"suite": suite.get("name"), "name": case.get("name"), "outcome": outcome, "seconds": seconds}
            )
    return found


def ignored(path):
    """Tests that are marked as ignored, from nextest's list of them."""
    if not path.is_file():
        return []
    suites = json.loads(path.read_text())["rust-suites"]
    return [
        {"suite": suite, "name": name, "outcome": "ignored", "seconds": None, "reason": "marked as ignored"}
        for suite, listed in suites.items()
        for name, case in listed["testcases"].items()
        if case["ignored"]
    ]


SUITE = re.compile(r"^\s+Running (?:unittests )?(\S+)")
CASE = re.compile(r"^test (\S+)(?: - should panic)? \.\.\. (ok|FAILED|ignored)(?:, (.*))?$")


def libtest(path):
    """Tests of what `cargo test` printed, which has no times."""
    if not path.is_file():
        return []
    suite, found = "", []
    for line in path.read_text(errors="replace").splitlines():
        if match := SUITE.match(line):
            suite = match[1]
        elif match := CASE.match(line):
            outcome = {"ok": "passed", "FAILED": "failed", "ignored": "ignored"}[match[2]]
            test = {"suite": suite, "name": match[1], "outcome": outcome, "seconds": None}
            if outcome == "ignored":
                test["reason"] = match[3] or "marked as ignored"
            found.append(test)
    return found


def version(runner):
    command = ["cargo", "nextest", "--version"] if runner == "nextest" else ["cargo", "--version"]
    return (run(command) or "").partition("\n")[0]


def capabilities():
    """What this machine offers to the tests."""
    uname = os.uname()
    script = pathlib.Path(__file__).resolve().with_name("kube-assets.sh")
    assets = (run([str(script), "directory"]) or "").strip()
    return {
        "kernel": uname.release,
        "architecture": uname.machine,
        "cores": os.cpu_count(),
        "root": os.geteuid() == 0,
        "network_namespaces": run(["unshare", "--net", "true"]) is not None,
        "user_namespaces": run(["unshare", "--user", "--map-root-user", "--net", "true"]) is not None,
        "tun": os.path.exists("/dev/net/tun"),
        "nftables": run(["unshare", "--net", "nft", "list", "ruleset"]) is not None,
        "kernel_wireguard": run(["unshare", "--net", "ip", "link", "add", "probe", "type", "wireguard"]) is not None,
        "wireguard_tools": shutil.which("wg") is not None,
        "buildah": shutil.which("buildah") is not None,
        "kube_apiserver": os.access(os.path.join(assets, "kube-apiserver"), os.X_OK),
        "etcd": os.access(os.path.join(assets, "etcd"), os.X_OK),
    }


def run(command):
    """What a command prints, or nothing if it can't be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def in_words(report):
    counts = report["counts"]
    text = f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped"
    return text + "".join(f"\n    skipped {skip['test']}: {skip['reason']}" for skip in report["skipped"])


def write(path, report):
    """The whole file or none."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(report, indent=1) + "\n")
    new.replace(path)


# --- the self-test ----------------------------------------------------------------------------------------------------

JUNIT = """<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="2" failures="{failures}" errors="0" time="1.5">
  <testsuite name="lab::mesh" tests="2" disabled="0" errors="0" failures="{failures}">
    <testcase name="three_nodes_meet" classname="lab::mesh" time="1.25"></testcase>
    <testcase name="a_route_comes_back" classname="lab::mesh" time="0.25">{failure}</testcase>
  </testsuite>
</testsuites>
"""
LIBTEST = """     Running unittests src/lib.rs (target/debug/deps/plan-0123456789abcdef)

running 3 tests
test diff::tests::nothing_to_do ... ok
test diff::tests::{name} ... {outcome}
test prefix::tests::refuses - should panic ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
"""


def self_test():
    """Detects each kind of failure, and none where there is none."""
    for case in [nextest_case, libtest_case, kernel_case, skip_case, empty_case, step_case]:
        with tempfile.TemporaryDirectory() as directory:
            case(pathlib.Path(directory))
    print("test-report: self-test passed")
    return 0


def nextest_case(directory):
    notes(directory, "steps.jsonl", {"name": "tests", "seconds": 1, "ok": True})
    default = directory / "nextest/default"
    default.mkdir(parents=True)
    (default / "junit.xml").write_text(JUNIT.format(failures=0, failure=""))
    report = assemble(directory, directory, "nextest", 0, True)
    expect(report["ok"] and report["counts"] == {"passed": 2, "failed": 0, "skipped": 0}, report)
    expect(report["tests"][0]["seconds"] == 1.25, report)
    alone = {"rust-suites": {"lab": {"testcases": {"alone::leaves_nothing": {"ignored": True}}}}}
    (directory / "ignored.json").write_text(json.dumps(alone))
    expect(assemble(directory, directory, "nextest", 0, True)["ok"], "a test that another one runs")
    cases = {"works": {"ignored": False}, "takes_an_hour": {"ignored": True}}
    (directory / "ignored.json").write_text(json.dumps({"rust-suites": {"lab": {"testcases": cases}}}))
    expect(not assemble(directory, directory, "nextest", 0, True)["ok"], "an ignored test in CI")
    expect(assemble(directory, directory, "nextest", 0, False)["counts"]["skipped"] == 1, "an ignored test at home")
    (directory / "ignored.json").unlink()
    (default / "junit.xml").write_text(JUNIT.format(failures=1, failure='<failure type="test failure"/>'))
    report = assemble(directory, directory, "nextest", 0, False)
    expect(not report["ok"] and report["problems"] == ["lab::mesh a_route_comes_back failed"], report)


def libtest_case(directory):
    (directory / "tests.log").write_text(LIBTEST.format(name="order", outcome="ok"))
    report = assemble(directory, directory, "cargo-test", 0, True)
    expect(report["ok"] and report["counts"]["passed"] == 3, report)
    expect(report["tests"][0]["suite"] == "src/lib.rs", report)
    (directory / "tests.log").write_text(LIBTEST.format(name="order", outcome="FAILED"))
    expect(not assemble(directory, directory, "cargo-test", 0, False)["ok"], "a failed test")
    (directory / "tests.log").write_text(LIBTEST.format(name="order", outcome="ignored, takes an hour"))
    expect(assemble(directory, directory, "cargo-test", 0, False)["ok"], "an ignored test at home")
    report = assemble(directory, directory, "cargo-test", 0, True)
    expect(not report["ok"] and report["skipped"][0]["reason"] == "takes an hour", report)


def kernel_case(directory):
    ignored = LIBTEST.format(name="kernel_order", outcome="ignored, needs WireGuard in the kernel")
    (directory / "tests.log").write_text(ignored)
    expect(not assemble(directory, directory, "cargo-test", 0, True)["ok"], "a test that no virtual machine ran")
    ran = "     Running tests/kernel/main.rs (target/debug/deps/kernel-0123456789abcdef)\n\n"
    (directory / "kernel.log").write_text(ran + "test diff::tests::kernel_order ... ok\n")
    report = assemble(directory, directory, "cargo-test", 0, True)
    expect(report["ok"] and report["counts"] == {"passed": 3, "failed": 0, "skipped": 0}, report)
    (directory / "kernel.log").write_text(ran + "test diff::tests::kernel_order ... FAILED\n")
    expect(not assemble(directory, directory, "cargo-test", 0, False)["ok"], "a test that failed in the virtual machine")


def skip_case(directory):
    (directory / "tests.log").write_text(LIBTEST.format(name="order", outcome="ok"))
    notes(directory, "skips.jsonl", {"test": "namespaces", "reason": "not root"})
    expect(not assemble(directory, directory, "cargo-test", 0, True)["ok"], "a skip in CI")
    expect(assemble(directory, directory, "cargo-test", 0, False)["ok"], "a skip at home")


def empty_case(directory):
    expect(not assemble(directory, directory, "nextest", 0, False)["ok"], "no tests at all")


def step_case(directory):
    notes(directory, "steps.jsonl", {"name": "format", "seconds": 1, "ok": False})
    report = assemble(directory, directory, "nextest", 1, False)
    expect(report["problems"] == ['the step "format" failed'] and not report["ok"], report)


def notes(directory, name, note):
    with open(directory / name, "a") as file:
        file.write(json.dumps(note) + "\n")


def expect(holds, found):
    if not holds:
        sys.exit(f"self-test: {found}")


if __name__ == "__main__":
    sys.exit(main())
