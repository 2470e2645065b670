"""The table of bad inputs and faults that the server survives: what proves each, and why it sometimes answers otherwise
than the table asks."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parents[1]
STREAMS = "comes with live streams: there is no input of this kind yet"
ROWS = 44


class Row(NamedTuple):
    """``proofs`` are tests as ``file::function``; ``note``: what is answered otherwise than the table asks, and why, or
    what does not apply."""

    number: int
    what: str
    proofs: tuple[str, ...]
    note: str = ""


TABLE = (
    Row(1, "no JSON, not UTF-8, NaN, duplicate keys", ("serve/test_bad_input::test_not_json",)),
    Row(
        2,
        "depth and number of parts",
        ("serve/test_bad_input::test_not_json", "serve/test_limits::test_checking_takes_linear_time"),
    ),
    Row(
        3,
        "body too large, compressed, lying Content-Length",
        (
            "serve/test_limits::test_body_limit_is_exact",
            "serve/test_limits::test_lying_content_length",
            "serve/test_bad_input::test_media_types",
        ),
        "415 for compressed bodies: none is ever unpacked, so a bomb has nothing to burst",
    ),
    Row(
        4,
        "headers too large, too many, too slow",
        ("serve/test_limits::test_headers_too_large", "serve/test_limits::test_slow_headers"),
    ),
    Row(
        5, "wrong type, method, path", ("serve/test_bad_input::test_media_types", "serve/test_bad_input::test_routing")
    ),
    Row(
        6,
        "no key, wrong key, key without right",
        ("serve/test_routes::test_keys", "serve/test_admin::test_with_keys_a_key_with_the_right_is_needed_and_enough"),
    ),
    Row(
        7,
        "key over its limits",
        ("serve/test_quota::test_limits_of_keys_over_http", "serve/test_quota::test_tokens_over_http"),
    ),
    Row(8, "unknown model", ("serve/test_bad_input::test_model",), "there are no adapters yet"),
    Row(
        9,
        "loading, or failed to load",
        (
            "serve/test_routes::test_loading_then_ready_then_dead",
            "serve/test_shutdown::test_a_backend_that_cannot_start",
        ),
        "models do not sleep",
    ),
    Row(
        10,
        "empty messages, prompt, content; wrong order of roles",
        ("serve/test_bad_input::test_chat", "serve/test_bad_input::test_completions"),
    ),
    Row(11, "more than the context", ("serve/test_bad_input::test_chat", "serve/test_bad_input::test_completions")),
    Row(12, "max_tokens 0, negative, 2^63", ("serve/test_bad_input::test_chat",)),
    Row(
        13,
        "n, best_of, prompts beyond the cap",
        ("serve/test_bad_input::test_chat", "serve/test_bad_input::test_completions"),
    ),
    Row(
        14,
        "too many logprobs; prompt_logprobs",
        ("serve/test_bad_input::test_chat", "serve/test_bad_inputs_more::test_cases"),
    ),
    Row(
        15,
        "numbers out of range, NaN",
        (
            "serve/test_bad_input::test_chat",
            "serve/test_bad_input::test_not_json",
            "serve/test_openapi::test_both_sides_of_every_bound",
        ),
    ),
    Row(
        16,
        "stop strings, logit_bias",
        ("serve/test_bad_input::test_chat", "serve/test_bad_inputs_more::test_cases"),
        "16 stop strings are allowed, not 4: searching for them costs no more",
    ),
    Row(
        17,
        "token ids that are none",
        ("serve/test_bad_input::test_completions", "serve/test_routes::test_tokenize_refusals"),
    ),
    Row(
        18,
        "seed beyond 64 bits, priority without priorities, unknown fields",
        ("serve/test_bad_input::test_chat", "serve/test_messages::test_wrong_requests_name_the_field"),
        "there is no strict mode: fields that would change the answer are refused by name, others do nothing; "
        "messages refuse all that they do not know",
    ),
    Row(
        19,
        "schemas that are invalid, recursive, vast",
        (
            "text/test_grammar::test_wrong_grammars_are_refused",
            "text/test_grammar::test_hostile_grammars_are_followed_or_refused",
            "serve/test_structured::test_wrong_wishes_name_the_field",
        ),
        "invalid_schema also where one is too complex: the limits are of work and not of time, so the same schema "
        "always fares alike",
    ),
    Row(
        20,
        "regex bombs, bad grammars, endless white space",
        (
            "text/test_grammar::test_wrong_grammars_are_refused",
            "text/test_grammar::test_json_has_no_room_for_endless_white_space",
        ),
    ),
    Row(
        21,
        "a grammar that leads nowhere",
        (
            "serve/test_structured::test_a_dead_end_is_told",
            "engine/test_grammars::test_a_dead_end_ends_one_stream_alone",
        ),
        "a stream ends with the error and no finish_reason: OpenAI's has no value 'error'",
    ),
    Row(
        22,
        "tools",
        (
            "serve/test_tools::test_wrong_requests_name_the_field",
            "serve/test_messages::test_wrong_requests_name_the_field",
        ),
    ),
    Row(
        23,
        "templates of strangers, and those that do not end or grow",
        (
            "serve/test_bad_input::test_templates_from_strangers",
            "chat/test_template::test_a_template_that_does_not_end_is_killed_and_the_next_one_works",
            "chat/test_template::test_a_template_that_grows_is_stopped",
        ),
    ),
    Row(
        24,
        "images that are none",
        ("serve/test_bad_inputs_more::test_cases",),
        "comes with media; until then every image is 400 unsupported_content and nothing of it is decoded",
    ),
    Row(
        25,
        "media at private addresses",
        ("serve/test_bad_inputs_more::test_no_address_is_asked_for_media",),
        "comes with media; until then 400 unsupported_content, and nothing is fetched",
    ),
    Row(
        26,
        "audio that is none",
        ("serve/test_bad_inputs_more::test_cases",),
        "comes with media; until then 400 unsupported_content",
    ),
    Row(
        27,
        "tensors",
        ("serve/test_bad_inputs_more::test_cases",),
        "comes with media; until then 400 unsupported_parameter, never unpickled",
    ),
    Row(28, "live: events out of order, junk", (), STREAMS),
    Row(29, "live: a producer that is too fast", (), STREAMS),
    Row(30, "live: gaps, drift, times that go back", (), STREAMS),
    Row(31, "live: foreign and expired sequences", (), STREAMS),
    Row(
        32,
        "duplicate request ids; ending another key's",
        (
            "serve/test_chat::test_request_id_is_echoed_but_not_used",
            "serve/test_cancel::test_a_key_sees_and_cancels_only_its_own",
        ),
    ),
    Row(
        33,
        "clients that leave or dawdle",
        (
            "serve/test_disconnect::test_client_leaves_before_the_first_token",
            "serve/test_disconnect::test_client_leaves",
            "serve/test_disconnect::test_reader_that_does_not_read",
            "serve/test_request_log::test_who_hangs_up_is_logged_as_499",
            "frontend/test_serving::test_a_client_that_hangs_up_frees_its_pages",
        ),
    ),
    Row(
        34,
        "full by count or by predicted wait",
        ("serve/test_routes::test_too_many_at_once", "serve/test_admission::test_the_limit_of_the_server"),
        "429 for a predicted wait: the server is well, and this request would only come too late",
    ),
    Row(
        35,
        "deadlines that cannot be met, or pass",
        (
            "serve/test_admission::test_over_http",
            "engine/test_deadlines::test_it_ends_with_what_it_has_after_the_step_in_which_time_ran_out",
            "engine/test_deadlines::test_those_who_wait_and_those_who_are_parked_end_too",
            "serve/test_deadlines::test_every_api_says_that_time_was_up",
            "serve/test_deadlines::test_before_the_first_token_it_is_an_error",
            "test_metrics::test_promises",
        ),
        "429 at admission, as in row 34; only a promise for the whole ends an answer: a late first or next token is "
        "counted as missed, for late text is still of use",
    ),
    Row(
        36,
        "pages run out",
        (
            "engine/test_engine::test_starvation_preempts_and_every_text_is_still_right",
            "engine/test_engine::test_wrong_requests_name_the_field",
        ),
    ),
    Row(
        37,
        "a fault in a step, numbers that are none, a hanging step",
        (
            "engine/test_faults::test_others_say_what_they_would_have_said",
            "engine/test_faults::test_where_all_fail_the_engine_is_at_fault",
            "serve/test_deadlines::test_a_fault_in_the_engine_costs_this_request",
            "frontend/test_restart::test_a_hanging_engine_is_replaced",
            "test_sample::test_strange_logits_give_a_token_and_no_hang",
            "kernels/test_attend::test_what_is_no_number_stays_with_its_row",
        ),
        "503 engine_restarting for all that ran where a step hangs, where nobody in it can be run, and where a fault "
        "may have spoilt state: the engine is replaced",
    ),
    Row(
        38,
        "memory runs out",
        (
            "serve/test_memory::test_over_http",
            "serve/test_memory::test_it_refuses_above_the_limit_and_accepts_well_below_it",
            "engine/test_engine::test_too_many_tokens_and_a_used_id_are_refused",
            "frontend/test_reload::test_what_cannot_be_loaded_leaves_the_old_one_serving",
            "frontend/test_soak::test_nothing_is_lost_doubled_or_leaked",
        ),
        "all new requests are refused alike, and no cache is dropped: cached prefixes lie in pages that are taken at "
        "the start, so dropping them would give nothing back",
    ),
    Row(
        39,
        "the engine ends",
        (
            "frontend/test_restart::test_a_killed_engine_is_replaced",
            "serve/test_routes::test_engine_death_in_a_request_is_said",
            "serve/test_routes::test_loading_then_ready_then_dead",
        ),
    ),
    Row(40, "a node of a cluster is lost", (), "comes with clusters: there is one engine on one machine"),
    Row(
        41,
        "a full disk, files that lie",
        (
            "weights/test_packs::test_a_place_that_cannot_be_written_only_warns",
            "weights/test_packs::test_an_index_that_lies_is_not_followed",
            "weights/test_gguf::test_damage_is_named",
            "weights/test_hf::test_damage_is_named",
            "cli/test_cli::test_a_damaged_model_is_refused_with_what_is_wrong",
        ),
    ),
    Row(
        42,
        "loops, and energy used up",
        (
            "frontend/test_repetition::test_the_embedded_model_is_stopped_in_its_loop",
            "serve/test_ceilings::test_joules",
        ),
    ),
    Row(
        43,
        "signals under load, no more file descriptors, a wall clock that is set",
        (
            "serve/test_shutdown::test_running_requests_finish_and_new_ones_are_refused",
            "serve/test_shutdown::test_two_signals_abort",
            "serve/test_bad_inputs_more::test_it_outlives_a_lack_of_file_descriptors",
            "serve/test_wall_clock::test_quotas_neither_refill_nor_starve",
            "serve/test_wall_clock::test_ceilings_and_latencies_are_spans",
            "serve/test_wall_clock::test_deadlines_and_meters_of_the_engine",
            "serve/test_wall_clock::test_only_stamps_are_taken_from_the_wall_clock",
        ),
    ),
    Row(
        44,
        "labels that a client makes up",
        (
            "serve/test_metrics::test_ten_thousand_odd_values_make_no_series",
            "serve/test_metrics::test_odd_requests_make_no_series",
        ),
    ),
)


def functions(file: Path) -> set[str]:
    """Names of the tests in a file."""
    return {n.name for n in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(n, ast.FunctionDef)}


def test_no_row_is_missing_and_every_proof_exists() -> None:
    assert [row.number for row in TABLE] == list(range(1, ROWS + 1))
    known: dict[str, set[str]] = {}
    for row in TABLE:
        assert row.proofs or row.note.startswith("comes with"), row.number
        for proof in row.proofs:
            name, _, function = proof.partition("::")
            if name not in known:
                known[name] = functions(TESTS / f"{name}.py")
            assert function in known[name], f"row {row.number}: there is no {proof}"
