"""Names in study files stay in their folder, and saved files say nothing of this machine."""

import pytest
from fault_kinds import SEARCH, STUDY
from tiny import tiny_t5
from toy import short_task

import s3pet
from s3pet.errors import StudyError
from s3pet.studies import Study


@pytest.mark.parametrize("name", ["../outside", "a/b", "..", ".hidden", "a\\b", "/tmp/x", "", "x" * 200, " x", "a\nb"])
@pytest.mark.parametrize("what", ["task", "search"])
def test_a_name_cannot_leave_the_folder_of_its_study(tmp_path, name, what):
    tasks, searches = {"one": "pocket/number"}, {"ours": {"budget": "0.05%"}}
    (tasks if what == "task" else searches)[name] = {"path": "pocket/number"} if what == "task" else {"budget": 300}
    study = Study("pocket-t5", tasks, {}, searches=searches, path=tmp_path / "study")
    with pytest.raises(StudyError, match=f"{what} .* cannot be called so"):
        study.folder(name if what == "task" else "one", name if what == "search" else "ours", 0)
    if what == "task" and name.startswith("../"):
        (tmp_path / "s.yaml").write_text(STUDY.replace("{one:", f'{{"{name}":'))
        with pytest.raises(StudyError, match="cannot be called so"):
            Study.load(tmp_path / "s.yaml")


def test_saved_files_hold_no_path_of_this_machine(tmp_path):
    model, task = tiny_t5(), short_task()
    del model.s3pet_id
    model.config._name_or_path = "/srv/alice/secret/models/tiny"
    space = s3pet.make_space(model, "lora")
    s3pet.search(model, task, space, out=tmp_path / "run", **SEARCH | {"steps": 1})
    tuned = s3pet.retrain(model, task, s3pet.manual_structure(space, "lora_qv"), steps=1, out=tmp_path / "tuned")
    s3pet.to_peft(tuned, tmp_path / "peft")
    s3pet.merge(tuned).save(tmp_path / "merged")
    assert tuned.config["model"] == space.model_id == "models/tiny"
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 12
    for file in files:
        assert not any(path in file.read_bytes() for path in (b"/srv/alice", str(tmp_path).encode())), file
