"""The files in deploy/ name routes, options and extras that there are."""

import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from embedlm.serving import Limits
from embedlm.serving import app as application
from tests.command import ROOT

DEPLOY = ROOT / "deploy"
PATHS = {path for _, path, _ in application.ROUTES}


@pytest.fixture(scope="module")
def options():
    """Return the options of `embedlm serve`, as its help tells them."""
    from tests.command import real

    return set(re.findall(r"--[a-z-]+", real("serve", "--help").out))


def named(arguments):
    return {one for one in arguments if one.startswith("--")}


def test_kubernetes(options):
    pod, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    assert named(container["args"]) <= options
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert {probe["path"] for probe in probes} <= PATHS
    ports = {port["containerPort"] for port in container["ports"]}
    assert (
        {probe["port"] for probe in probes} == ports == {service["spec"]["ports"][0]["targetPort"]}
    )
    volumes = {volume["name"] for volume in pod["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert service["spec"]["selector"] == pod["spec"]["template"]["metadata"]["labels"]
    drain = float(container["args"][container["args"].index("--drain") + 1])
    grace = pod["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > drain + Limits().drain_timeout


def test_compose(options):
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    server = compose["services"]["embedlm"]
    assert named(server["command"]) <= options
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    volumes = {
        one.partition(":")[0] for every in compose["services"].values() for one in every["volumes"]
    }
    assert {one for one in volumes if not one.startswith(".")} == set(compose["volumes"])


def test_dockerfile(options):
    text = (DEPLOY / "Dockerfile").read_text()
    extras = re.search(r"/source\[([\w,]+)\]", text)[1].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert set(extras) <= set(project["optional-dependencies"])
    assert named(re.findall(r'"([^"]+)"', text.partition("ENTRYPOINT")[2])) <= options
    for copied in re.search(r"COPY (pyproject.*) /source/", text)[1].split():
        assert (ROOT / copied).is_file(), copied
    assert re.search(r"^USER \d+$", text, re.M), "a number, so that runAsNonRoot can be checked"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd(tmp_path, options):
    text = (DEPLOY / "embedlm.service").read_text()
    start = re.search(r"^ExecStart=(\S+) serve (.*)$", text, re.M)
    assert named(start[2].split()) <= options
    unit = tmp_path / "embedlm.service"
    unit.write_text(text.replace(start[1], "/bin/true"))
    found = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, found.stderr) == (0, "")
