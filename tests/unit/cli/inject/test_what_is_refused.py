from __future__ import annotations

import pytest

from tests.unit.cli.inject.support import deployment, done, injected, notes, of_kind, pods, refusal, removed

VLLM = "image: vllm/vllm-openai:v0.11.0\nargs: [--enable-lora]"


@pytest.mark.parametrize(
    ("container", "spec", "line", "reason"),
    [
        (f"{VLLM}\nenv: null", "", 12, "spec.template.spec.containers.0.env is no list"),
        (f"{VLLM}\nenv: ~", "", 12, "spec.template.spec.containers.0.env is no list"),
        (f"{VLLM}\nenv: {{a: b}}", "", 12, "spec.template.spec.containers.0.env is no list"),
        (
            f"{VLLM}\nenv: &env [{{name: A}}]",
            "  - {name: other, image: any, env: *env}",
            12,
            "spec.template.spec.containers.0.env is used elsewhere too, as *env",
        ),
        (
            VLLM,
            "  - {name: other, image: any, volumeMounts: &v [{name: a, mountPath: /a}]}\nvolumes: *v",
            13,
            "spec.template.spec.volumes is an alias (*v)",
        ),
    ],
)
def test_places_that_cannot_be_edited(container: str, spec: str, line: int, reason: str) -> None:
    """What cannot be changed without changing something else is refused, with the line and the reason."""
    text = deployment(container, spec=spec)

    assert refusal(text).startswith(f"{line}: Deployment model: refused: {reason}")


def test_a_pod_that_is_merged_in() -> None:
    """A list that comes in by a merge key stands elsewhere: a second one would hide it."""
    text = (
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: model}\nx: &x\n  volumes: [{name: a, emptyDir: {}}]\n"
        "spec:\n  template:\n    spec:\n      <<: *x\n"
        "      containers: [{name: v, image: vllm/vllm-openai, args: [--enable-lora]}]\n"
    )

    assert "volumes is not written out here (write it out, without * or <<)" in refusal(text)


def test_a_pod_that_is_shared() -> None:
    """A pod that two workloads have in common is not changed for one of them."""
    text = (
        "apiVersion: v1\nkind: List\nitems:\n"
        "- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n"
        "  spec: &spec\n    containers: [{name: v, image: vllm/vllm-openai, args: [--enable-lora]}]\n"
        "- apiVersion: v1\n  kind: Pod\n  metadata: {name: b}\n  spec: *spec\n"
    )

    outcome = injected(text)

    assert outcome.text == text
    assert [one.line for one in outcome.said if one.refused] == [8, 12]


def test_one_refusal_is_one_for_all() -> None:
    """Where one workload of a stream is refused, none is changed: a stream is applied as a whole."""
    good = deployment(VLLM).replace("name: model", "name: good")
    bad = deployment(f"{VLLM}\nenv: null")

    outcome = injected(f"{good}---\n{bad}")

    assert outcome.text == f"{good}---\n{bad}"
    assert outcome.refused


def test_a_document_that_is_no_yaml() -> None:
    """A workload that cannot be read is refused with its line; what concerns nobody here is not even looked at."""
    broken = "kind: Deployment\nspec:\n  containers: [\n"
    good = deployment(VLLM)

    assert refusal(f"{good}---\n{broken}").startswith("16: refused: is not YAML: ")
    assert done(f"{good}---\na: [\n").endswith("---\na: [\n")


def test_two_documents_without_a_line_between() -> None:
    """A document that begins behind the end of another cannot be told apart from it by lines."""
    text = f"{deployment(VLLM)}...\nkind: Other\n"

    assert "a second document begins here without a line of ---" in refusal(text)


def test_json_alone() -> None:
    """A single object in JSON has no place for its ConfigMap: a list has, and YAML has."""
    text = (
        '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, '
        '"spec": {"containers": [{"name": "v", "image": "vllm/vllm-openai", "args": ["--enable-lora"]}]}}'
    )

    assert "is JSON, beside which no document can stand" in refusal(text)


def test_a_job_that_would_not_complete() -> None:
    """A plain container keeps a Job from completing, and a native sidecar does not."""
    text = deployment(VLLM, kind="Job")

    assert "would never complete" in refusal(text, native=False)
    assert pods(done(text))


@pytest.mark.parametrize(
    ("container", "port"),
    [
        (f"{VLLM}\nports: [{{containerPort: 9400}}]", 9400),
        (f"{VLLM}\nports: [{{containerPort: 9401}}]", 9401),
        ("image: vllm/vllm-openai\nargs: [--enable-lora, --port, '9400']", 9400),
    ],
)
def test_ports_that_are_taken(container: str, port: int) -> None:
    """Two containers of a pod cannot listen on one port."""
    assert f"port {port} is taken, on which the sidecar would listen" in refusal(deployment(container))


def test_a_volume_of_the_same_name() -> None:
    """A volume that somebody else has named like ours is not taken for ours."""
    text = deployment(VLLM, spec="volumes:\n  - name: lora-sidecar-config\n    emptyDir: {}")

    assert "has a volume lora-sidecar-config of its own" in refusal(text)


def test_a_name_that_is_taken() -> None:
    """A ConfigMap that is there already is not written over, and two workloads do not share one."""
    taken = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: model-lora-sidecar}\n"
    twin = deployment(VLLM).replace("kind: Deployment", "kind: StatefulSet")

    assert "the same name as the ConfigMap that is here already" in refusal(deployment(VLLM) + taken)
    assert "the same name as what is added for Deployment model" in refusal(f"{deployment(VLLM)}---\n{twin}")


def test_the_same_name_in_two_namespaces() -> None:
    """Workloads of one name in two namespaces each have a ConfigMap in theirs."""
    one = deployment(VLLM).replace("  name: model\n", "  name: model\n  namespace: a\n")
    two = deployment(VLLM).replace("  name: model\n", "  name: model\n  namespace: b\n")

    maps = of_kind(done(f"{one}---\n{two}"), "ConfigMap")

    assert [one["metadata"]["namespace"] for one in maps] == ["a", "b"]


def test_a_workload_without_a_name() -> None:
    """Without a name there is none for the ConfigMap."""
    text = deployment(VLLM).replace("  name: model\n", "  labels: {a: b}\n")

    assert "has no name" in refusal(text)


def test_the_network_of_the_host() -> None:
    """Two pods on one node's network would want one port, which is said."""
    text = deployment(VLLM, spec="hostNetwork: true")

    assert "two such pods on a node both want port 9400" in notes(text)[0]


def test_a_sidecar_that_was_pasted_in() -> None:
    """A sidecar without a record is left alone by inject, and not guessed at by --remove."""
    text = deployment(VLLM, spec="initContainers:\n  - {name: lora-sidecar, image: x, restartPolicy: Always}")

    assert injected(text).text == text
    assert "has a sidecar already and is left as it is" in notes(text)[0]
    assert removed(text).text == text
    assert removed(text).refused


def test_a_sidecar_that_cannot_be_taken_out() -> None:
    """A list that somebody has made an alias since is not edited: nothing is taken out, and no file is half done."""
    text = done(deployment(VLLM)).replace("      volumes:\n", "      volumes: &v\n") + "x: *v\n"
    broken = text.replace("---\napiVersion: v1\ndata", "x: *v\n---\napiVersion: v1\ndata").removesuffix("x: *v\n")

    outcome = removed(broken)

    assert outcome.text == broken
    assert any("used elsewhere too, as *v" in str(one) for one in outcome.said if one.refused)
    assert removed("metadata: {annotations: {lora-sidecar/injected: [}\n").refused


def test_nothing_to_do() -> None:
    """A stream without a server is passed on as it is, and that is said."""
    assert notes("kind: Service\n") == ["1: there is no container that runs vLLM or SGLang"]
    assert injected("").text == ""
    assert [str(one) for one in removed("kind: Service\n").said] == ["there is no sidecar that inject has added"]


def test_what_was_changed_since() -> None:
    """Taking out goes by the record: what somebody has added since stays, and what is gone is said to be."""
    text = done(deployment(VLLM))
    changed = text.replace(
        "      volumes:\n", "      volumes:\n        - name: mine\n          emptyDir: {}\n"
    ).replace("          env:\n            - name: VLLM_ALLOW_RUNTIME_LORA_UPDATING\n              value: 'True'\n", "")

    outcome = removed(changed)

    assert changed.count("mine") == 1
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING is not there any more" in str(outcome.said[0])
    assert outcome.text == deployment(VLLM, spec="volumes:\n  - name: mine\n    emptyDir: {}")
