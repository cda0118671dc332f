"""Which tests run where, in addition to the markers in the test files.

The default suite holds one quick test per claim. `SLOW` adds the marker `slow` to variants of such a test, and to tests that
take minutes of processor time; CI runs both in its long part. `BY_HAND` adds the markers `slow` and `by_hand` to tests that
CI leaves out: further variants, and the most expensive tests. `bash scripts/test.sh -m slow` runs them. An entry is a test's
path and name, with the beginning of its parameters where only some of them are meant.
"""

from __future__ import annotations

SLOW = (
    "tests/boundary/test_commands.py::test_a_predictor_is_made_measured_and_loads_in_transformers_with_equal_logits",
    "tests/boundary/test_commands.py::test_an_interrupted_training_of_a_predictor_equals_an_uninterrupted_one",
    "tests/boundary/test_commands.py::test_training_stops_when_evaluations_do_not_improve_and_keeps_the_best",
    "tests/decode/test_generate.py::test_a_continuation_does_not_depend_on_batch_order_or_devices",
    "tests/decode/test_generate.py::test_a_program_is_compiled_once_for_similar_prompts_and_again_when_the_pool_has_grown",
    "tests/decode/test_loop.py::test_a_response_does_not_depend_on_stacked_layers_or_layouts_that_the_compiler_chooses",
    "tests/decode/test_loop.py::test_a_response_does_not_depend_on_the_number_of_devices",
    "tests/decode/test_loop.py::test_labels_are_inverted_where_the_oracle_inverts_them",
    "tests/decode/test_loop.py::test_no_token_is_discarded_with_one_vocabulary_online_and_no_word_rule",
    "tests/decode/test_loop.py::test_the_caches_are_updated_in_place",
    "tests/evaluate/programs/test_evaluation.py::test_an_evaluation_of_programs_counts_both_graders_and_logs_its_sandbox",
    "tests/models/test_parity.py::test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token"
    "[gpt_oss",
    "tests/models/test_parity.py::test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token"
    "[qwen3",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[deepseek_v3",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[gpt_oss-untied",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[llama-untied",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[qwen2-untied",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[qwen3_moe",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[deepseek_v3-untied",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[gpt_oss-untied",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[qwen3",
    "tests/models/test_parity.py::test_query_blocks_of_long_sequences_do_not_change_results_or_gradients",
    "tests/models/test_parity.py::test_the_first_layers_of_a_model_are_those_of_transformers_also_after_an_export[gpt_oss",
    "tests/models/test_quantized.py::test_a_deepseek_folder_in_fp8_gives_the_logits_of_transformers",
    "tests/models/test_quantized.py::test_a_gpt_oss_folder_in_mxfp4_gives_the_logits_of_transformers",
    "tests/models/test_restack.py::test_restacking_and_unstacking_changes_no_array_and_keeps_the_mesh[deepseek_v3",
    "tests/plan/test_programs.py::test_every_shipped_configuration_is_planned_without_network[deepseek-r1",
    "tests/plan/test_programs.py::test_every_shipped_configuration_is_planned_without_network[gpt-oss-120b_qwen3-30b",
    "tests/report/test_predictor_page.py::test_every_token_is_shown_once_and_the_text_is_complete",
    "tests/synthesis/test_job.py::test_a_finished_run_started_again_does_nothing_and_one_with_other_settings_is_refused",
    "tests/synthesis/test_job.py::test_rows_tile_their_content_and_come_in_the_order_of_the_input",
    "tests/synthesis/test_job.py::test_traces_cut_inside_thinking_or_answer_record_their_finish_reason",
    "tests/synthesis/test_recipes.py::test_rewritten_prompts_are_printed_and_not_saved",
    "tests/synthesis/test_recipes.py::test_the_candidate_that_is_most_probable_to_the_teacher_is_kept",
    "tests/synthesis/test_verification.py::test_a_resampled_response_becomes_right_or_fails_after_its_attempts",
    "tests/synthesis/test_verification.py::test_a_row_without_a_right_answer_is_skipped_with_skip_invalid",
    "tests/synthesis/test_verification.py::test_dropped_responses_are_recorded_and_right_ones_are_unchanged",
    "tests/synthesis/test_verification.py"
    "::test_kept_responses_carry_their_verdict_and_otherwise_equal_those_of_an_unverified_run",
    "tests/synthesis/test_verification.py::test_streamed_responses_get_the_same_verdicts",
    "tests/text/test_bridge.py::test_the_device_agrees_with_the_library_on_real_tokenizers[qwen3-5000",
    "tests/train/test_job.py::test_a_checkpoint_that_is_truncated_or_of_another_model_is_refused_before_the_first_step",
    "tests/train/test_job.py::test_a_continued_training_needs_no_more_memory_than_an_uninterrupted_one",
    "tests/train/test_job.py::test_a_training_continues_on_another_mesh",
)

BY_HAND = (
    "tests/analyze/test_charts.py::test_a_chart_is_the_same_bytes_each_time",
    "tests/boundary/test_commands.py::test_a_predictor_trained_from_scratch_knows_the_boundaries_of_the_grammar",
    "tests/boundary/test_commands.py::test_kill_9_at_random_instants_changes_no_bit_of_a_predictor",
    "tests/decode/test_generate.py::test_generation_equals_a_plain_loop_over_whole_sequences[deepseek_v3",
    "tests/decode/test_generate.py::test_generation_equals_a_plain_loop_over_whole_sequences[gpt_oss-untied-0.0",
    "tests/decode/test_generate.py::test_generation_equals_a_plain_loop_over_whole_sequences[llama-untied-0.0",
    "tests/decode/test_generate.py::test_generation_equals_a_plain_loop_over_whole_sequences[qwen3_moe",
    "tests/decode/test_loop.py::test_a_layer_that_forgets_its_beginning_shares_a_prompt_only_before_anything_is_written",
    "tests/decode/test_loop.py::test_a_response_depends_neither_on_the_page_size_nor_on_a_pool_in_which_lanes_are_parked[32",
    "tests/decode/test_loop.py::test_a_response_does_not_depend_on_the_boundary_mode[two vocabularies, extend",
    "tests/decode/test_loop.py::test_a_response_does_not_depend_on_the_number_of_lanes[1",
    "tests/decode/test_loop.py::test_labels_are_inverted_where_the_oracle_inverts_them[False",
    "tests/decode/test_loop.py::test_the_engine_and_the_plain_method_agree_token_for_token[one vocabulary, discard",
    "tests/decode/test_loop.py::test_the_engine_and_the_plain_method_agree_token_for_token[one vocabulary, extend",
    "tests/decode/test_loop.py::test_the_engine_and_the_plain_method_agree_token_for_token[one vocabulary, none, online",
    "tests/decode/test_loop.py::test_the_engine_and_the_plain_method_agree_token_for_token"
    "[two vocabularies, discard, rollback",
    "tests/decode/test_loop.py::test_the_engine_and_the_plain_method_agree_token_for_token[two vocabularies, extend, online",
    "tests/decode/test_loop.py::test_the_engine_and_the_plain_method_agree_token_for_token[two vocabularies, none, online",
    "tests/decode/test_sampling.py::test_filters_keep_the_tokens_and_shares_that_transformers_keeps[filters1",
    "tests/decode/test_sampling.py::test_filters_keep_the_tokens_and_shares_that_transformers_keeps[filters3",
    "tests/decode/test_sampling.py::test_filters_keep_the_tokens_and_shares_that_transformers_keeps[filters4",
    "tests/evaluate/programs/test_levels.py::test_a_user_without_privileges_has_the_same_limits[bubblewrap",
    "tests/evaluate/programs/test_levels.py::test_kill_9_leaves_no_process_and_no_file_behind_and_the_next_sandbox_no_group"
    "[bubblewrap",
    "tests/evaluate/test_references.py::test_a_text_of_a_hundred_thousand_characters_is_read_in_seconds_whatever_it_repeats"
    "[boxed",
    "tests/evaluate/test_references.py::test_a_text_of_a_hundred_thousand_characters_is_read_in_seconds_whatever_it_repeats"
    "[integer",
    "tests/mini/test_build.py::test_a_shipped_model_passes_its_gate_again",
    "tests/models/test_parity.py::test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token"
    "[deepseek_v3-tied-8",
    "tests/models/test_parity.py::test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token"
    "[deepseek_v3-untied",
    "tests/models/test_parity.py::test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token"
    "[gpt_oss-tied-8",
    "tests/models/test_parity.py::test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token"
    "[gpt_oss-untied",
    "tests/models/test_parity.py::test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token"
    "[qwen2-",
    "tests/models/test_parity.py::test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token"
    "[qwen3-",
    "tests/models/test_parity.py::test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token"
    "[qwen3_moe-tied-1",
    "tests/models/test_parity.py::test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token"
    "[qwen3_moe-untied",
    "tests/models/test_parity.py::test_an_exported_model_gives_the_same_logits_in_transformers[deepseek_v3-tied-stacked",
    "tests/models/test_parity.py::test_an_exported_model_gives_the_same_logits_in_transformers[gpt_oss-untied-unrolled",
    "tests/models/test_parity.py::test_an_exported_model_gives_the_same_logits_in_transformers[qwen3_moe",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[deepseek_v3-tied",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[deepseek_v3-untied-1",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[gpt_oss-tied",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[gpt_oss-untied-1",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[llama-untied-8",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[qwen2-untied-8",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[qwen3-untied",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[qwen3_moe-tied",
    "tests/models/test_parity.py::test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers"
    "[qwen3_moe-untied-1",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[deepseek_v3-tied-stacked-1",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[deepseek_v3-tied-stacked-8",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[deepseek_v3-tied-unrolled-8",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[deepseek_v3-untied-stacked-1",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[deepseek_v3-untied-unrolled",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[gpt_oss-tied-stacked-1",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[gpt_oss-tied-stacked-8",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[gpt_oss-tied-unrolled-8",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[gpt_oss-untied-stacked-1",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[gpt_oss-untied-unrolled",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[qwen2-",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[qwen3-tied",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[qwen3_moe-tied-stacked-1",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[qwen3_moe-tied-unrolled-1",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[qwen3_moe-tied-unrolled-8",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[qwen3_moe-untied-stacked-1",
    "tests/models/test_parity.py::test_complete_sequences_give_the_logits_of_transformers[qwen3_moe-untied-unrolled",
    "tests/models/test_restack.py::test_restacking_and_unstacking_changes_no_array_and_keeps_the_mesh[deepseek_v3-untied-1",
    "tests/models/test_restack.py::test_restacking_and_unstacking_changes_no_array_and_keeps_the_mesh[gpt_oss",
    "tests/models/test_restack.py::test_restacking_and_unstacking_changes_no_array_and_keeps_the_mesh[llama-untied",
    "tests/plan/test_programs.py::test_a_dry_run_counts_the_bytes_of_the_compiled_program_within_3_percent[gpt-oss-120b",
    "tests/synthesis/test_job.py::test_kill_9_at_random_instants_changes_nothing[10",
    "tests/synthesis/test_job.py::test_kill_9_at_random_instants_changes_nothing[25",
    "tests/synthesis/test_job.py::test_one_model_alone_writes_through_the_same_engine[student_only",
    "tests/synthesis/test_job.py::test_one_model_alone_writes_through_the_same_engine[teacher_only",
    "tests/synthesis/test_processes.py::test_two_killed_processes_continue_as_two_or_as_one",
    "tests/synthesis/test_processes.py::test_two_processes_do_both_passes_of_a_recipe_as_one_does[teacher_reference",
    "tests/synthesis/test_processes.py::test_two_processes_evaluate_as_one_on_a_mesh_that_does_not_shard_lanes",
    "tests/synthesis/test_processes.py::test_two_processes_of_four_devices_write_the_responses_of_one_of_eight",
    "tests/synthesis/test_processes.py::test_two_processes_pass_the_students_arrays_on_as_one_does",
    "tests/synthesis/test_recipes.py::test_an_isolation_message_is_saved_and_no_writer_reads_it[teacher_score",
    "tests/synthesis/test_recipes.py::test_both_passes_continue_after_an_interruption[teacher_reference",
    "tests/synthesis/test_recipes.py::test_the_writers_are_those_of_the_recipe[student_only",
    "tests/synthesis/test_recipes.py::test_the_writers_are_those_of_the_recipe[teacher_answer",
    "tests/synthesis/test_recipes.py::test_the_writers_are_those_of_the_recipe[teacher_mix",
    "tests/synthesis/test_recipes.py::test_the_writers_are_those_of_the_recipe[teacher_only",
    "tests/synthesis/test_recipes.py::test_the_writers_are_those_of_the_recipe[teacher_score",
    "tests/synthesis/test_recipes.py::test_the_writers_are_those_of_the_recipe[teacher_think",
    "tests/synthesis/test_recipes.py::test_the_writers_are_those_of_the_recipe[tessy",
    "tests/synthesis/test_small_pair.py::test_the_real_small_pair_writes_responses_to_shared_prompts[5",
    "tests/synthesis/test_small_pair.py::test_the_writers_are_those_of_every_other_recipe",
    "tests/synthesis/test_verification.py::test_a_killed_resampling_continues_to_the_same_responses",
    "tests/synthesis/test_verification.py::test_two_processes_resample_as_one_does",
    "tests/test_compile_cache.py::test_the_second_start_of_a_job_compiles_nothing_even_in_a_new_run_folder",
    "tests/test_fused.py::test_the_students_arrays_go_from_synthesis_to_training_and_back_without_touching_disk[mesh0",
    "tests/test_pipeline.py::test_a_full_disk_is_reported_and_the_run_continues_afterwards",
    "tests/test_pipeline.py::test_two_processes_run_the_job_of_one",
    "tests/test_real_models.py::test_a_real_model_continues_the_shared_prompts_as_transformers_does",
    "tests/test_sharding.py::test_gradients_on_8_devices_equal_those_on_one[gpt_oss",
    "tests/test_sharding.py::test_gradients_on_8_devices_equal_those_on_one[qwen3_moe",
    "tests/text/test_bridge.py::test_the_device_agrees_with_the_library_on_real_tokenizers[deepseek-v3-",
    "tests/text/test_bridge.py::test_the_device_agrees_with_the_library_on_real_tokenizers[gpt-oss-",
    "tests/text/test_bridge.py::test_the_device_agrees_with_the_library_on_real_tokenizers[qwen3-100000",
    "tests/text/test_joined_bridges.py::test_each_lane_has_the_tokens_of_its_own_vocabulary[one rule",
    "tests/text/test_joined_bridges.py::test_each_lane_has_the_tokens_of_its_own_vocabulary[two devices",
    "tests/text/test_kinds.py::test_the_device_gives_any_text_the_tokens_of_the_library[digits+gpt2",
    "tests/text/test_kinds.py::test_the_device_gives_any_text_the_tokens_of_the_library[gpt2",
    "tests/text/test_kinds.py::test_the_device_gives_any_text_the_tokens_of_the_library[llama3",
    "tests/text/test_kinds.py::test_the_device_gives_any_text_the_tokens_of_the_library[qwen3.5",
    "tests/text/test_sentencepiece_bridge.py::test_the_device_agrees_on_a_tokenizer_that_sentencepiece_trained[llama",
    "tests/text/test_words.py::test_closed_words_of_every_rule_in_random_pieces_have_the_tokens_of_the_library[deepseek3",
    "tests/text/test_words.py::test_closed_words_of_every_rule_in_random_pieces_have_the_tokens_of_the_library[o200k",
    "tests/text/test_words.py::test_closed_words_of_every_rule_in_random_pieces_have_the_tokens_of_the_library[qwen2",
    "tests/text/test_words.py::test_closed_words_of_real_tokenizers_have_the_tokens_of_the_library[deepseek-v3",
    "tests/text/test_words.py::test_words_and_white_space_of_ten_thousand_bytes_close_in_a_window_that_holds_them[ ",
    "tests/text/test_words.py::test_words_and_white_space_of_ten_thousand_bytes_close_in_a_window_that_holds_them[x",
    "tests/train/test_job.py::test_kill_9_at_random_instants_changes_no_bit[10",
    "tests/train/test_lora.py::test_an_adapter_loads_in_peft_and_a_merged_model_in_transformers_with_equal_logits"
    "[llama-untied",
    "tests/train/test_processes.py::test_two_processes_stop_at_the_same_step_on_sigterm_and_continue",
    "tests/train/test_real_training.py::test_the_first_losses_of_smollm2_are_those_of_torch[20",
    "tests/train/test_step.py::test_packing_splitting_and_sharding_change_neither_loss_nor_gradient[qwen3-tied-2-8",
    "tests/train/test_step.py::test_the_gradient_in_bfloat16_is_near_that_which_jax_derives_for_every_family"
    "[gpt_oss-untied-8",
    "tests/train/test_step.py::test_the_gradient_in_bfloat16_is_near_that_which_jax_derives_for_every_family[qwen3_moe",
)


def stale(node_ids: list[str]) -> list[str]:
    """The entries that name none of these tests."""
    return [entry for entry in (*SLOW, *BY_HAND) if not any(node.startswith(entry) for node in node_ids)]
