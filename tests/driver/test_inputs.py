"""What the classes of a job are called."""

import json

from PIL import Image
from tiny import SCORED, write_job

from shapray.run import main


def folders(root, names, shade):
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for n in range(3):
            picture = Image.new("L", (8, 8), shade + 16 * number + n)
            picture.save(root / name / f"{root.name}-{n}.png")
    return {"source": "imagefolder", "path": str(root)}


def test_classes_are_called_as_their_folders_and_others_by_their_number(tmp_path, in_process):
    calibration = folders(tmp_path / "calibration", ("cat", "dog"), 10)
    evaluation = folders(tmp_path / "evaluation", ("cat", "dog"), 90)
    job = write_job(tmp_path, data__calibration=calibration, data__evaluation=evaluation)
    assert main([str(job), *SCORED, "score.groups=[fc1]"]) == 0
    run = json.loads((tmp_path / "out/run.json").read_text())
    assert run["class_names"] == ["cat", "dog", *(f"class {n}" for n in range(2, 10))]
    assert ">cat<" in (tmp_path / "out/report.html").read_text()


def test_as_many_names_as_outputs(tmp_path, in_process, capsys):
    job = write_job(tmp_path)
    assert main([str(job), "data.class_names=[zero, one]"]) == 2
    assert "data.class_names: 2 names; the network has 10 outputs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
