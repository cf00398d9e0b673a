"""The folder for the hub is complete, its card says how to load it, and only huggingface_hub is asked to send it."""

import re

import huggingface_hub
import pytest
import yaml
from tiny import tiny_bert, tiny_t5
from toy import short_task, toy_tokenizer
from tuned import structure_of, tuned_at_random

from s3pet import load_tuned
from s3pet.errors import RunError
from s3pet.export import push_to_hub, save_folder


@pytest.mark.parametrize(
    ("make_model", "what"), [(tiny_t5, "structure"), (tiny_bert, "structure"), (tiny_bert, "head")]
)
def test_the_folder_opens_again_and_its_card_says_what_it_is(make_model, what, tmp_path):
    model = make_model()
    tuned = tuned_at_random(
        model, structure_of(model, "lora", "bitfit") if what == "structure" else what, short_task(3)
    )
    tuned.metrics["test"] = 0.4321
    save_folder(tuned, tmp_path / "out", base="somebody/model")
    again = load_tuned(tmp_path / "out", model, tokenizer=toy_tokenizer())
    assert again.predict(["w1 w2"], proba=True).equals(tuned.predict(["w1 w2"], proba=True))
    text = (tmp_path / "out" / "README.md").read_text()
    _, header, body = text.split("---", 2)
    assert yaml.safe_load(header)["base_model"] == "somebody/model"
    words = [
        "bad, good, fair",
        "| test | accuracy | 0.4321 |",
        "seed 0",
        'load_backbone("somebody/model")',
        "load_tuned(",
    ]
    assert not [word for word in words if word not in body]
    code = re.search(r"```python\n(.*?)\n```", body, re.S)[1]
    assert len(code.splitlines()) == 2
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"README.md", "tuned.json", "weights.safetensors", "metrics.json"}
    if what == "structure":
        assert {"structure.png", "structure.json"} <= files and "| encoder | attn.q | lora | 2 |" in body
        assert f"{tuned.structure.n_params:,} parameters in PET modules" in body
    with pytest.raises(RunError, match="holds a tuned model with a card"):
        save_folder(tuned, tmp_path / "out")
    save_folder(tuned, tmp_path / "out", overwrite=True)


def test_pushing_goes_through_huggingface_hub(tmp_path, monkeypatch):
    model, calls = tiny_t5(), []
    tuned = tuned_at_random(model, structure_of(model, "lnfit"))

    class Api:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, **options):
            calls.append((repo_id, options))

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            assert load_tuned(folder_path, model, tokenizer=toy_tokenizer()).structure == tuned.structure
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push_to_hub(tuned, "me/mine", token="abc") == "https://hub/me/mine"
    assert calls == ["abc", ("me/mine", {"private": True, "exist_ok": True})]
    monkeypatch.setattr(Api, "create_repo", lambda *args, **options: (_ for _ in ()).throw(OSError("no\nnetwork")))
    with pytest.raises(RunError, match=r"'me/mine' could not be pushed: no network.*save_folder"):
        push_to_hub(tuned, "me/mine")
