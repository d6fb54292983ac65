"""Reading Triton's log: lines as release 24.10 writes them."""

from pathlib import Path

from labkit.server import log

HEAD = "1123 01:15:32.376892 8042"
LOG = (
    f'I{HEAD} model_lifecycle.cc:472] "loading: good:1"\n'
    f"E{HEAD} model_lifecycle.cc:642] \"failed to load 'bad' version 1: Internal: Invalid "
    "argument: model 'bad': got 3, expected 4\\n\"\n"
    f"E{HEAD} model_lifecycle.cc:642] \"failed to load 'odd' version 2: Internal: RuntimeError: "
    'two\\nlines\\n\\nAt:\\n  engine.py(9): run\\n"\n'
    f"E{HEAD} model_repository_manager.cc:1460] \"Poll failed for model directory 'typo': failed "
    'to read text proto"\n'
    f"I{HEAD} server.cc:674] \n"
    "+-------+---------+\n"
    "| Model | Version |\n"
    "+-------+---------+\n"
    "\n"
    "error: creating server: Internal - failed to load all models\n"
)


def test_names_the_models_that_failed_and_why() -> None:
    failures = log.failed_models(LOG)
    assert list(failures) == ["bad", "odd", "typo"]
    assert failures["bad"] == "Invalid argument: model 'bad': got 3, expected 4"
    assert failures["odd"].startswith("Internal: RuntimeError: two\nlines\n\nAt:\n")
    assert failures["typo"] == "failed to read text proto"


def test_a_refused_warm_up_is_a_failed_model_even_if_the_server_crashed() -> None:
    text = f'I{HEAD} x.cc:1] "loading"\nwarm: request failed: ids out of range: 99\n'
    assert log.failed_models(text) == {"warm": "its warm-up failed: ids out of range: 99"}


def test_a_good_log_names_no_failures() -> None:
    assert (
        log.failed_models(f"I{HEAD} model_lifecycle.cc:839] \"successfully loaded 'good'\"") == {}
    )


def test_long_explanations_are_cut() -> None:
    many = "\\n".join(map(str, range(100)))
    text = f"E{HEAD} a.cc:1] \"failed to load 'm' version 1: {many}\""
    assert log.failed_models(text)["m"].endswith("39\n…")


def test_recognizes_a_lost_port() -> None:
    assert log.lost_a_port("failed to start HTTP service: Unavailable - Socket '…' already in use ")
    assert not log.lost_a_port(LOG)


def test_the_tail_leaves_tables_and_usage_out(tmp_path: Path) -> None:
    path = tmp_path / "triton.log"
    path.write_text(LOG + "unrecognized option '--x'\nUsage: tritonserver [options]\n  --help\n")
    assert log.tail(path).splitlines()[-2:] == [
        "error: creating server: Internal - failed to load all models",
        "unrecognized option '--x'",
    ]


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert log.read(tmp_path / "none") == ""
