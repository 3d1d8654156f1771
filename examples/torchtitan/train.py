"""torchtitan's own training on its debug model of Llama 3, also where there is no GPU.

With GPUs and data of your own `torchrun -m torchtitan.train` is all you need. This adds a tokenizer
and some text, so that nothing is downloaded, and on CPUs what torchtitan 0.2.2 misses there.

    torchrun --nproc-per-node 2 train.py --job.config_file debug.toml
"""

import json
import sys
import tempfile
import types
from pathlib import Path

import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.distributed.fsdp import FSDPModule


def run_on_cpu() -> None:
    """Make the CPU the device of torchtitan, which is not imported yet."""
    process, memory = psutil.Process(), psutil.virtual_memory()
    torch._utils._get_available_device_type = lambda: "cpu"
    # What torchtitan calls as in torch.cuda, and torch.cpu lacks or answers in another type.
    torch.cpu.current_device = lambda: 0
    torch.cpu.get_device_name = lambda device: "CPU"
    torch.cpu.get_device_properties = lambda device: types.SimpleNamespace(
        total_memory=memory.total
    )
    torch.cpu.memory_stats = lambda device: {"reserved_bytes.all.peak": process.memory_info().rss}
    torch.cpu.reset_peak_memory_stats = torch.cpu.empty_cache = lambda: None
    # It sets a factor for the sums of gradients, which gloo cannot multiply by.
    set_factor = FSDPModule.set_gradient_divide_factor

    def set_factor_outside(module: FSDPModule, factor: float) -> None:
        set_factor(module, factor)
        module.set_force_sum_reduction_for_comms(True)

    FSDPModule.set_gradient_divide_factor = set_factor_outside
    # Its kernels for experts need Triton, which CPUs lack; the debug model has no experts.
    kernels = types.ModuleType("torchtitan.models.moe.kernels")
    kernels.generate_permute_indices = None
    sys.modules[kernels.__name__] = kernels


def write_tokenizer(folder: Path) -> None:
    """A tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))


def write_text(folder: Path) -> None:
    """Multiplication tables, one to a line of JSON."""
    tables = ("; ".join(f"{n} times {m} is {n * m}" for m in range(50)) for n in range(500))
    lines = "\n".join(json.dumps({"text": table}) for table in tables)
    (folder / "text.jsonl").write_text(lines)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        assets, text = Path(folder, "assets"), Path(folder, "text")
        for made, write in ((assets, write_tokenizer), (text, write_text)):
            made.mkdir()
            write(made)
        # torchtitan reads the arguments when it is imported.
        sys.argv += ["--model.hf_assets_path", str(assets)]
        sys.argv += ["--training.dataset_path", str(text)]
        if not torch.cuda.is_available():
            run_on_cpu()
        from torchtitan.train import Trainer, main

        main(Trainer)
