"""What transformers is imported without comes when it is used, and it finds all of its names in one reading."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
WORK = """
import inspect, sys, tempfile
import torch
from workflow_scripts.models.transformers_import import Qwen2Config, Qwen2ForCausalLM

marked = []

@torch.compiler.disable
def not_compiled(value):
    marked.append(torch.compiler.is_compiling())
    return value + 1

lm = Qwen2ForCausalLM(Qwen2Config(
    vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
))
optimizer = torch.optim.AdamW(lm.parameters(), fused=True)
tokens = torch.arange(9)[None]
lm(tokens, labels=tokens).loss.backward()
optimizer.step()
with tempfile.TemporaryDirectory() as folder:
    lm.save_pretrained(folder)
    Qwen2ForCausalLM.from_pretrained(folder)
inspect.getmodule(inspect.currentframe(), "nowhere")
assert type(sys.modules["torch._dynamo"]).__name__ == "_CompilerWhenUsed", "loaded before it was used"

@torch.compile(backend="eager")
def compiled(value):
    marked.append(torch.compiler.is_compiling())
    return not_compiled(value * 2) * 3

assert compiled(torch.ones(1)).item() == 9
assert marked == [True, False], marked
assert sys.modules["torch._dynamo"].__file__
"""


def test_the_compiler_is_loaded_when_it_is_used_and_respects_earlier_marks():
    subprocess.run([sys.executable, "-c", WORK], check=True, cwd=ROOT)


OTHER_LIBRARIES = """
import sys
import torch
from workflow_scripts.models.transformers_import import Qwen2Config, Qwen2ForCausalLM

assert "torch.distributed.tensor" not in sys.modules
assert torch.distributed.tensor.DTensor and torch.distributed.fsdp.FullyShardedDataParallel
assert torch.nn.attention.flex_attention.flex_attention and torch.fx.experimental.symbolic_shapes.ShapeEnv
for package in (torch.distributed, torch.utils):
    assert not hasattr(package, "no_such_module")
"""


def test_submodules_that_transformers_would_have_loaded_are_there_when_used():
    subprocess.run([sys.executable, "-c", OTHER_LIBRARIES], check=True, cwd=ROOT)


ADAPTERS = """
from workflow_scripts.methods.less import add_adapters
from workflow_scripts.models.transformers_import import Qwen2Config, Qwen2ForCausalLM

lm = Qwen2ForCausalLM(Qwen2Config(
    vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1
))
assert add_adapters(lm, rank=2, alpha=4, seed=1)
"""


def test_adapters_are_added_in_a_process_of_their_own():
    subprocess.run([sys.executable, "-c", ADAPTERS], check=True, cwd=ROOT)


SCAN = """
import json, sys
from pathlib import Path
if sys.argv[1:]:
    import workflow_scripts.models.transformers_scan
import transformers.models
import transformers.utils.import_utils as scanner

folder = Path(transformers.__file__).parent / "models"
names = scanner.define_import_structure(folder, prefix="models")
listed = {str(sorted(needs)): {key: sorted(own) for key, own in of.items()} for needs, of in names.items()}
print(json.dumps(listed, sort_keys=True))
if sys.argv[1:]:
    reads = scanner.create_import_structure_from_path.cache_info()
    assert reads.currsize == reads.misses > 500, reads
"""


def test_transformers_finds_the_same_names_in_one_reading_of_its_files():
    command = [sys.executable, "-c", SCAN]
    once, as_it_is = (
        subprocess.run([*command, *arguments], check=True, capture_output=True, text=True, cwd=ROOT).stdout
        for arguments in (["once"], [])
    )
    assert once == as_it_is
    assert "Qwen2ForCausalLM" in once
