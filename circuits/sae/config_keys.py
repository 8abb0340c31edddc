"""Keys that other libraries have written into ``cfg.json``: those that are read, and those that change nothing in use."""

from __future__ import annotations

SPARSIFY = frozenset(
    {"activation", "d_in", "expansion_factor", "hookpoint", "k", "multi_topk", "normalize_decoder", "num_latents", "signed",
     "skip_connection", "transcode"}
)  # fmt: skip

_READ = """architecture d_in d_sae d_out k apply_b_dec_to_input normalize_activations reshape_activations
rescale_acts_by_decoder_norm finetuning_scaling_factor hook_head_index"""

_SAID = """metadata dtype device model_name model_class_name model_from_pretrained_kwargs hook_name hook_layer hook_name_out
hook_layer_out hook_head_index_out hook_point_layer hook_point_eval hook_eval dataset_path dataset_name
dataset_trust_remote_code context_size prepend_bos seqpos_slice exclude_special_tokens neuronpedia_id sae_lens_version
sae_lens_training_version hf_hook_name hf_hook_name_out"""

_TRAINING = """act_store_device activation_normalization_factor adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient
b_dec_init_method begin_batch_token begin_sequence_token buffer_size_gb cached_activations_path checkpoint_path column_name
compile_llm compile_sae data_dir data_files dead_feature_estimation_method dead_feature_threshold dead_feature_window
decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init disable_concat_sequences
eval_batch_size_prompts eval_every_n_wandb_logs expansion_factor feature_probability feature_reinit_scale
feature_sampling_method feature_sampling_window finetuning_method finetuning_tokens from_pretrained_path hf_is_private_repo
hf_num_shards hf_repo_id hf_revision init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth
jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient
l0_warm_up_steps l1_coefficient l1_warm_up_steps llm_compilation_mode log_activations_store_to_wandb
log_optimizer_state_to_wandb log_to_wandb logger lp_norm lr lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps
model_batch_size model_kwargs model_training_steps mse_loss_normalization n_batches_in_buffer n_checkpoints n_eval_batches
n_features n_restart_cycles n_shuffles_final n_shuffles_in_entire_dir n_shuffles_with_last_section n_training_steps
new_cached_activations_path noise_scale normalize_sae_decoder num_proc output_path pre_act_loss_coefficient
pretokenize_batch_size resume resume_from_checkpoint run_name sae_compilation_mode save_final_checkpoint save_path
scale_sparsity_penalty_by_decoder_norm seed sequence_separator_token shuffle shuffle_every_n_buffers sparsity_penalty split
store_batch_size store_batch_size_prompts streaming target_l0 tokenizer_name tokens_per_buffer total_training_samples
total_training_tokens train_batch_size train_batch_size_samples train_batch_size_tokens training_tokens
use_cached_activations use_ghost_grads use_sparse_activations verbose wandb_entity wandb_id wandb_log_frequency wandb_project"""

SAELENS = frozenset(f"{_READ} {_SAID} {_TRAINING}".split())
"""Of SAELens 1 to 6, whole training configs too; options that changed the SAE and are gone since are not among them."""
