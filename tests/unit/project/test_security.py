"""Nothing that a study names is run: no pickles, no shell, no code of models unless asked for; no token is told."""

import ast
import inspect
import json
from pathlib import Path

import pytest

from workflow_scripts.core.distributed import _as_json, _from_json
from workflow_scripts.core.errors import StudyError
from workflow_scripts.models import loading as models

PACKAGE = Path(__file__).parents[3] / "workflow_scripts"
MODULES = sorted(PACKAGE.rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "torch.save", "yaml.load", "yaml.unsafe_load"}


def calls(path):
    """Every call of a module: its name as written, and its keywords."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: word.value for word in node.keywords}


def loaded_otherwise(path):
    """The classes of what a module loads by the function for tokenizers and configs."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("load_pretrained"):
            yield ast.unparse(node.args[0])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_reads_code_or_starts_a_shell(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
        if isinstance(node, ast.ImportFrom):
            names = {node.module}
        assert not {str(name).split(".")[0] for name in names} & UNSAFE_MODULES
    for name, keywords in calls(path):
        assert name not in UNSAFE_CALLS
        assert "shell" not in keywords
        assert not (name.endswith("np.load") and "allow_pickle" in keywords)


def test_weights_are_read_from_safetensors_alone():
    """One function loads models, and says so; only its module calls the libraries' own loaders."""
    assert '"use_safetensors": True' in inspect.getsource(models.load_weights)
    for path in MODULES:
        names = {name for name, _ in calls(path)}
        loads = any(name.endswith(".from_pretrained") for name in names)
        assert path == PACKAGE / "models" / "loading.py" or not loads, path.name
        assert not any(loaded.startswith("AutoModel") for loaded in loaded_otherwise(path)), path.name
        if "SentenceTransformer" in names:
            assert "use_safetensors" in path.read_text(encoding="utf-8"), path.name


def test_rules_start_no_shell():
    """A rule that did could put a name of the config into a command line."""
    for path in (PACKAGE.parent / "rules").glob("*.smk"):
        assert "shell:" not in path.read_text(encoding="utf-8"), path.name


def test_code_of_models_runs_only_when_asked_for_and_is_told(capsys):
    class Loader:
        @staticmethod
        def from_pretrained(model, *, revision, trust_remote_code):
            return trust_remote_code

    assert models.load_pretrained(Loader, "org/model", None, False) is False
    assert capsys.readouterr().err == ""
    assert models.load_pretrained(Loader, "org/model", None, True) is True
    assert "Python code that comes with 'org/model' may run here" in capsys.readouterr().err


def test_a_token_is_in_no_message(monkeypatch):
    class Loader:
        @staticmethod
        def from_pretrained(model, **_):
            raise OSError("403 for https://user:hf_secretmarker@hub/model")

    monkeypatch.setenv("HF_TOKEN", "hf_secretmarker")
    with pytest.raises(StudyError) as told:
        models.load_pretrained(Loader, "org/model", None, False)
    assert "hf_secretmarker" not in str(told.value)


def test_other_processes_get_plain_values_and_paths():
    arguments = {"paths": [Path("a b"), Path("c;d")], "values": {"rate": 0.1, "none": None}, "one": Path("../x")}
    assert json.loads(json.dumps(arguments, default=_as_json), object_hook=_from_json) == arguments
    with pytest.raises(TypeError, match="neither a plain value nor a path"):
        json.dumps({"code": print}, default=_as_json)
