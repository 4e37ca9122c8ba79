"""Weights sharded among processes; accelerate's FSDP itself runs on GPUs only."""

import os
import subprocess
import sys
from pathlib import Path

from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).resolve().parents[3]


def test_a_sharded_network_trains_like_a_whole_one():
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "tests/support/fsdp_check.py",
    ]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "sharded as whole" in done.stdout


def test_accelerate_reads_the_recipe_s_settings():
    config = load_config_from_file(str(ROOT / "swifti2v_train" / "recipes" / "accelerate" / "fsdp_8.yaml"))
    assert (config.distributed_type.value, config.num_processes, config.mixed_precision) == (
        "FSDP",
        8,
        "bf16",
    )
    assert config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "WanTransformerBlock"
