"""The files of examples/cluster are valid, and say commands that torchrun and captioner take."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import yaml
from torch.distributed.run import parse_args

from captioner.cli import main

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "cluster"
FILES = ["caption.sbatch", "caption.yaml", "train.sbatch", "train.yaml"]
SCRIPTS, MANIFESTS = FILES[::2], FILES[1::2]
SLURM = {
    "SLURM_JOB_NODELIST": "node[0-1]",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_JOB_ID": "71",
    "SLURM_ARRAY_TASK_ID": "7",
}
# Stand-ins: print the words, or what Slurm would say.
STUBS = {
    "srun": 'printf "%s\\n" "$@"',
    "captioner": 'printf "%s\\n" captioner "$@"',
    "scontrol": "printf 'node0\\nnode1\\n'",
}


def documents(name: str) -> dict[str, dict]:
    return {each["kind"]: each for each in yaml.safe_load_all((FOLDER / name).read_text())}


def run_with_stubs(words: list[str], folder: Path, extra: dict[str, str]) -> list[str]:
    for name, body in STUBS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"} | extra
    return subprocess.check_output(words, env=environment, cwd=folder, text=True).splitlines()


def parsed(words: list[str]) -> dict:
    """Check a command of captioner; return its options."""
    name, verb, *arguments = words
    assert name == "captioner"
    command = main.get_command(click.Context(main), verb)
    assert command is not None
    with command.make_context(verb, arguments) as context:
        return context.params


def check_training(words: list[str]) -> object:
    """Check the words for torchrun; return its options."""
    options = parse_args(words)
    assert options.module
    assert options.rdzv_backend == "c10d"
    assert options.max_restarts == 3
    said = parsed([options.training_script, *options.training_script_args])
    assert said["resume"]  # else captioner refuses
    assert said["config"] == "coco"
    return options


def test_the_folder_holds_these_files():
    assert sorted(path.name for path in FOLDER.iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
def test_the_guide_shows_the_file(name):
    page = (ROOT / "docs" / "guides" / "scale.md").read_text()
    kind = "yaml" if name.endswith(".yaml") else "sh"
    block = re.search(rf"`examples/cluster/{name}`[^\n]*\n\n```{kind}\n(.*?)```", page, re.DOTALL)
    assert block
    assert block[1] == (FOLDER / name).read_text()


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_and_shellcheck_accept_the_script(name):
    subprocess.run(["bash", "-n", FOLDER / name], check=True)
    if tool := shutil.which("shellcheck"):
        subprocess.run([tool, FOLDER / name], check=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_manifest_fits_the_schema_of_kubernetes(name):
    kubernetes = pytest.importorskip("kubernetes_validate")
    for document in documents(name).values():
        kubernetes.validate(document, kubernetes.latest_version(), strict=True)


def test_slurm_trains(tmp_path):
    name, *words = run_with_stubs(["bash", str(FOLDER / "train.sbatch")], tmp_path, SLURM)
    assert name == "torchrun"
    options = check_training(words)
    assert (options.nnodes, options.nproc_per_node) == ("2", "4")
    assert options.rdzv_endpoint == "node0:29500"
    text = (FOLDER / "train.sbatch").read_text()
    assert "--ntasks-per-node=1\n" in text  # torchrun starts the processes of a machine


def test_slurm_captions(tmp_path):
    words = run_with_stubs(["bash", str(FOLDER / "caption.sbatch")], tmp_path, SLURM)
    (tmp_path / "shards").mkdir()
    said = parsed(words)
    assert said["images"] == ("shards/00007.tar",)
    assert said["output"] == Path("captions/00007/captions.jsonl")


def test_kubernetes_trains():
    found = documents("train.yaml")
    service, job = found["Service"], found["Job"]
    name, space = service["metadata"]["name"], service["metadata"]["namespace"]
    assert job["metadata"]["namespace"] == space
    spec = job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["subdomain"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert container["command"] == ["torchrun"]
    options = check_training(container["args"])
    assert spec["completionMode"] == "Indexed"
    assert int(options.nnodes) == spec["completions"] == spec["parallelism"]
    assert int(options.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    host, port = options.rdzv_endpoint.split(":")
    assert host == f"{job['metadata']['name']}-0.{name}.{space}.svc.cluster.local"
    assert container["ports"] == [{"containerPort": int(port)}]
    check_mounts(pod)


def test_kubernetes_captions(tmp_path):
    spec = documents("caption.yaml")["Job"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert spec["completionMode"] == "Indexed"
    assert pod["restartPolicy"] == "Never"  # as podFailurePolicy and backoffLimitPerIndex ask
    words = [*container["command"], *container["args"]]
    said = parsed(run_with_stubs(words, tmp_path, {"JOB_COMPLETION_INDEX": "41"}))
    assert said["images"] == ("shards/00041.tar",)
    assert said["output"] == Path("captions/00041/captions.jsonl")
    check_mounts(pod)


def check_mounts(pod: dict) -> None:
    volumes = {volume["name"] for volume in pod["volumes"]}
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert container["workingDir"] in {mount["mountPath"] for mount in container["volumeMounts"]}
