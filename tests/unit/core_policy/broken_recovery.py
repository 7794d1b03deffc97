"""What can be wrong with the table [recovery]."""

from __future__ import annotations

from tests.unit.core_policy.broken import MATCH, Broken, after_match, in_defaults, in_functions, in_recovery

POLICY = '[[policy]]\nmatch.address = "0000:01:00.0"\n'  # two lines

KEYS = [
    Broken("recover for recovery", after_match('[recover]\nfatal = "recover"'), 3, "did you mean recovery?"),
    Broken("recovery is a text", 'recovery = "none"\n' + MATCH, 1, "'none' is not a table"),
    Broken("recovery is a list of tables", after_match("[[recovery]]\ngrace-sec = 1"), 3, "is not a table"),
    Broken("recovery beside policies", f"{POLICY}[recovery]\ngrace-sec = 1\n", 3, "beside [[policy]]"),
    Broken("an unknown key of recovery", in_recovery("retries = 3"), 4, "unknown key"),
    Broken("an underscore in recovery", in_recovery("grace_sec = 3"), 4, "did you mean grace-sec?"),
    Broken("nonfatal in one word", in_recovery('nonfatal = "report"'), 4, "did you mean non-fatal?"),
    Broken("rung in the singular", in_recovery('rung = ["kernel"]'), 4, "did you mean rungs?"),
    Broken("repair in recovery", in_recovery('repair = "always"'), 4, "belongs in [functions]"),
    Broken("fatal in functions", in_functions('fatal = "recover"'), 4, "belongs in [recovery]"),
    Broken("permission in defaults", in_defaults('permission = "manual"'), 4, "belongs in [recovery]"),
    Broken("close-sec at the top", "close-sec = 9\n" + MATCH, 1, "belongs in [recovery]"),
    Broken("an unknown key of the second recovery", f"{POLICY}{POLICY}recovery.a = 1\n", 5, "unknown key"),
    Broken(
        "a drop-in with an unknown key of recovery",
        (MATCH, "\n[recovery]\nclose-seconds = 1\n"), 3, "did you mean close-sec?",
    ),
]  # fmt: skip

WORDS = [
    Broken("an unknown answer to a storm", in_recovery('correctable-storm = "panic"'), 4, 'is not "ignore"'),
    Broken(
        "an answer to a storm in the past", in_recovery('correctable-storm = "ignored"'), 4,
        "did you mean ignore?",
    ),
    Broken(
        "an answer to a storm that is true", in_recovery("correctable-storm = true"), 4, 'is not "ignore"',
    ),
    Broken("non-fatal errors ignored", in_recovery('non-fatal = "ignore"'), 4, 'is not "report", "recover"'),
    Broken("fatal errors only reported", in_recovery('fatal = "report"'), 4, 'is not "recover" or "quar'),
    Broken("fatal with a capital letter", in_recovery('fatal = "Recover"'), 4, "did you mean recover?"),
    Broken("a list of answers", in_recovery('fatal = ["recover"]'), 4, 'is not "recover" or "quarantine"'),
    Broken("an unknown permission", in_recovery('permission = "owner"'), 4, 'is not "automatic" or "man'),
    Broken("a permission cut short", in_recovery('permission = "auto"'), 4, "did you mean automatic?"),
]  # fmt: skip

NUMBERS = [
    Broken("a storm of none", in_recovery("storm-threshold = 0"), 4, "0 is not a number of errors"),
    Broken("a storm below none", in_recovery("storm-threshold = -1"), 4, "-1 is not a number of errors"),
    Broken("a storm too large", in_recovery("storm-threshold = 1_000_001"), 4, "is not a number of errors"),
    Broken("a storm in quotes", in_recovery('storm-threshold = "9"'), 4, "write it without quotes"),
    Broken("a storm with a fraction", in_recovery("storm-threshold = 1.5"), 4, "is not a number of errors"),
    Broken("a negative grace", in_recovery("grace-sec = -1"), 4, "-1 is not a number of seconds"),
    Broken("a grace of more than a day", in_recovery("grace-sec = 86401"), 4, "is not a number of seconds"),
    Broken("a grace with its unit", in_recovery('grace-sec = "10s"'), 4, "is not a number of seconds"),
    Broken("a close time below none", in_recovery("close-sec = -9"), 4, "-9 is not a number of seconds"),
    Broken("a close time without end", in_recovery("close-sec = inf"), 4, "inf is not a number of seconds"),
    Broken("a close time that is false", in_recovery("close-sec = false"), 4, "is not a number of seconds"),
]  # fmt: skip

RUNGS = [
    Broken("no rungs", in_recovery("rungs = []"), 4, "no rung is allowed"),
    Broken("one rung without its list", in_recovery('rungs = "kernel"'), 4, "write it in [ ]"),
    Broken("a number for rungs", in_recovery("rungs = 3"), 4, "3 is not a list"),
    Broken("an unknown rung", in_recovery('rungs = ["kernel", "reboot"]'), 4, "'reboot' is not \"kernel\""),
    Broken("a rung cut short", in_recovery('rungs = [\n"kernel",\n"rescan"]'), 6, "did you mean remove-res"),
    Broken("a rung with an underscore", in_recovery('rungs = ["driver_rebind"]'), 4, "mean driver-rebind?"),
    Broken("a rung that is a number", in_recovery("rungs = [\n1]"), 5, "1 is not"),
    Broken("a rung twice", in_recovery('rungs = ["kernel",\n"kernel"]'), 5, "is in the list twice"),
    Broken(
        "a rung twice, not side by side",
        in_recovery('rungs = [\n"kernel",\n"driver-rebind",\n"kernel",\n]'), 7, "is in the list twice",
    ),
    Broken(
        "a drop-in that takes all rungs away",
        (in_recovery('rungs = ["kernel"]'), "recovery.rungs = []\n"), 1, "no rung is allowed",
    ),
]  # fmt: skip

RECOVERY = [*KEYS, *WORDS, *NUMBERS, *RUNGS]
