"""Recorded runs in the tidy form, made up: two that ran and one that ran out of memory."""

RECORDED_RUNS = """\
sweep,model,sequence_length,world_size,global_batch_size,tensor_parallel,pipeline_parallel,\
data_parallel,micro_batch_size,activation_checkpointing,sequence_parallel,attention_kernel,\
rmsnorm_kernel,outcome,step_seconds
small,13B,2048,32,2048,1,2,16,1,none,False,flash2,True,ok,56.5
small,13B,2048,32,2048,2,1,16,1,none,True,flash2,True,ok,60.0
small,13B,2048,32,2048,1,1,32,1,none,False,flash2,True,oom,
"""
