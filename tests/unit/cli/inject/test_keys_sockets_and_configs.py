from __future__ import annotations

import base64

import pytest
import yaml

from tests.unit.cli.inject.support import (
    config_of,
    deployment,
    done,
    given,
    injected,
    notes,
    objects,
    of_kind,
    pods,
    refusal,
    removed,
)

VLLM = "image: vllm/vllm-openai:v0.11.0"
KEY = "env:\n  - name: KEY\n    valueFrom: {secretKeyRef: {name: keys, key: user}}"
SECRET = {
    "name": "lora-sidecar-api-key",
    "secret": {"secretName": "keys", "items": [{"key": "user", "path": "api-key"}]},
}
RELATIVE = "must be an absolute path, or a hub id such as org/name"
PLAIN = "servers:\n  - name: vllm\n    url: http://127.0.0.1:8000\n"


def sidecar(text: str) -> dict[str, object]:
    """The only sidecar's container."""
    (pod,) = pods(text)
    (found,) = [one for one in [*pod.get("initContainers", []), *pod["containers"]] if one["name"] == "lora-sidecar"]
    return dict(found)


def mounts(text: str) -> dict[str, str]:
    """What is mounted into the only sidecar besides its config and its checkpoints: volumes by path."""
    listed = sidecar(text)["volumeMounts"]
    assert isinstance(listed, list)
    own = {"lora-sidecar-config", "lora-sidecar-state"}
    assert all(one["readOnly"] for one in listed if one["name"] != "lora-sidecar-state")
    return {one["mountPath"]: one["name"] for one in listed if one["name"] not in own}


def volume(text: str, name: str) -> object:
    """A volume of the only pod with a sidecar."""
    (pod,) = pods(text)
    (found,) = [one for one in pod["volumes"] if one["name"] == name]
    return found


@pytest.mark.parametrize(
    "container",
    [
        f"{VLLM}\nargs: [--enable-lora, --api-key, $(KEY)]\n{KEY}",
        f"{VLLM}\nargs: [--enable-lora]\n{KEY.replace('name: KEY', 'name: VLLM_API_KEY')}",
        f"image: any\ncommand: [sh, -c, 'vllm serve x --enable-lora --api-key $KEY']\n{KEY}",
        f"image: any\ncommand: [sh, -c, 'vllm serve x --enable-lora --api-key \"${{KEY}}\"']\n{KEY}",
        f"image: any\ncommand: [sh, -c, 'VLLM_API_KEY=$KEY exec vllm serve x --enable-lora']\n{KEY}",
    ],
)
def test_a_key_from_a_secret(container: str) -> None:
    """A key that the server has from a Secret reaches the sidecar as a file of the same Secret."""
    text = done(deployment(container))

    (server,) = config_of(text)["servers"]
    assert server["api_key_file"] == "/var/run/secrets/vllm/api-key"
    assert mounts(text) == {"/var/run/secrets/vllm": "lora-sidecar-api-key"}
    assert volume(text, "lora-sidecar-api-key") == SECRET
    assert of_kind(text, "Secret") == []


def test_a_key_from_a_file() -> None:
    """A key that the server reads from a file is read from the same file by the sidecar."""
    text = done(
        deployment(
            "image: any\ncommand: [sh, -c]\nargs: ['vllm serve x --enable-lora --api-key $(cat /keys/vllm/key)']\n"
            "volumeMounts: [{name: all, mountPath: /}, {name: keys, mountPath: /keys, subPath: sub}]",
            spec="volumes: [{name: keys, secret: {secretName: keys}}, {name: all, emptyDir: {}}]",
        )
    )

    (server,) = config_of(text)["servers"]
    assert server["api_key_file"] == "/keys/vllm/key"
    assert mounts(text) == {"/keys": "keys"}
    assert "subPath: sub" in text


def test_a_key_that_is_written_out() -> None:
    """A key that stands in the manifest is put into a Secret, and out of sight: no message shows it."""
    before = deployment(f"{VLLM}\nargs: [--enable-lora, --api-key, sk-1234]")

    text = done(before)

    (secret,) = of_kind(text, "Secret")
    assert secret["metadata"]["name"] == "model-lora-sidecar"
    assert secret["stringData"] == {"api-key": "sk-1234"}
    assert volume(text, "lora-sidecar-api-key") == {
        "name": "lora-sidecar-api-key",
        "secret": {"secretName": "model-lora-sidecar", "items": [{"key": "api-key", "path": "api-key"}]},
    }
    assert "sk-1234" not in str(config_of(text))
    assert not any("sk-1234" in note for note in notes(before))
    assert removed(text).text == before


def test_a_key_that_only_the_cluster_knows() -> None:
    """A key from a variable that the manifest does not set is refused: the sidecar could not be given it."""
    text = deployment(f"{VLLM}\nargs: [--enable-lora, --api-key, $(KEY)]\nenvFrom: [{{secretRef: {{name: keys}}}}]")

    assert refusal(text) == (
        "11: Deployment model: refused: has an API key that is not in the manifest "
        "(take it from a Secret (env with secretKeyRef), or give --config with an api_key_file)"
    )


def test_a_socket() -> None:
    """A server on a socket is reached by it, through the volume in which it lies."""
    text = deployment(
        f"{VLLM}\nargs: [--enable-lora, --uds, /run/vllm/vllm.sock]\n"
        "volumeMounts: [{name: run, mountPath: /run/vllm/}]",
        spec="volumes: [{name: run, emptyDir: {}}]",
    )

    (server,) = config_of(done(text))["servers"]
    assert server["url"] == "unix:///run/vllm/vllm.sock"
    assert mounts(done(text)) == {"/run/vllm/": "run"}
    assert "its socket must be writable for user 65532" in notes(text)[0]


def test_a_socket_of_the_container_alone() -> None:
    """A socket that lies on no volume cannot be reached from another container."""
    text = deployment(f"{VLLM}\nargs: [--enable-lora, --uds, /tmp/vllm.sock]")

    assert "/tmp/vllm.sock lies on no volume that could be shared with the sidecar" in refusal(text)


def test_tls() -> None:
    """A server with a certificate is asked over TLS, and verified with that certificate, which is said."""
    text = deployment(
        f"{VLLM}\nargs: [--enable-lora, --ssl-certfile, /tls/tls.crt, --ssl-keyfile=/tls/tls.key]\n"
        "volumeMounts: [{name: tls, mountPath: /tls}]",
        spec="volumes: [{name: tls, secret: {secretName: tls}}]",
    )

    (server,) = config_of(done(text))["servers"]
    assert server["url"] == "https://127.0.0.1:8000"
    assert server["tls"] == {"ca_file": "/tls/tls.crt"}
    assert mounts(done(text)) == {"/tls": "tls"}
    assert "its certificate must be valid for 127.0.0.1" in notes(text)[0]


def test_adapters_that_cannot_be_declared() -> None:
    """An adapter by a path that depends on the server's folder, or by a name from elsewhere, is left out and named."""
    text = deployment(
        f'{VLLM}\nargs: [--enable-lora, --lora-modules, a=/adapters/a, b=./b, c=$(WHERE), \'{{"name": "d"\', e=org/e]'
    )

    assert config_of(done(text))["adapters"] == [{"name": "a", "path": "/adapters/a"}, {"name": "e", "path": "org/e"}]
    assert [note.partition(": ")[2] for note in notes(text)] == [
        f"Deployment model: the adapter b is not declared: its path (./b) {RELATIVE}",
        "Deployment model: an adapter that it starts with is not in the manifest: it is not declared",
        'Deployment model: an adapter that it starts with is no JSON: {"name": "d"',
    ]


def test_names_that_yaml_would_convert() -> None:
    """A name that looks like a number or a truth is quoted, in the config and in what kubectl reads."""
    text = done(
        deployment(
            f"{VLLM}\nargs: [--enable-lora, --served-model-name, 'on', --lora-modules, 1e3=/a]\n"
            "env: [{name: VLLM_API_KEY, valueFrom: {secretKeyRef: {name: '0123', key: 'no'}}}]"
        )
    )

    config = config_of(text)
    assert config["servers"][0]["base_model"] == "on"
    assert config["adapters"] == [{"name": "1e3", "path": "/a"}]
    assert "secretName: '0123'" in text
    assert "key: 'no'" in text


def test_a_config_that_somebody_gives() -> None:
    """A config is taken over as it is, comments too, and what it says of ports and folders is what the pod gets."""
    config = (
        "# ours\nservers:\n  - name: llm      # the only one\n    url: http://localhost:8000\n"
        "ops: {bind: '0.0.0.0:9500'}\ncheckpoint: {directory: /state}\n"
    )

    text = done(deployment(f"{VLLM}\nargs: [--enable-lora]"), config=given(config))

    (made,) = of_kind(text, "ConfigMap")
    assert made["data"]["sidecar.yaml"] == config
    assert sidecar(text)["ports"] == [{"name": "lora-sidecar", "containerPort": 9500}]
    assert {"name": "lora-sidecar-state", "mountPath": "/state"} in sidecar(text)["volumeMounts"]  # type: ignore[operator]


def test_a_config_and_a_key() -> None:
    """A key file that a config names is where the Secret is mounted, whatever its folder and name."""
    config = f"{PLAIN}    api_key_file: /keys/the-key\n"

    text = done(deployment(f"{VLLM}\nargs: [--enable-lora, --api-key, $(KEY)]\n{KEY}"), config=given(config))

    assert mounts(text) == {"/keys": "lora-sidecar-api-key"}
    assert volume(text, "lora-sidecar-api-key") == {
        "name": "lora-sidecar-api-key",
        "secret": {"secretName": "keys", "items": [{"key": "user", "path": "the-key"}]},
    }


@pytest.mark.parametrize(
    ("container", "config", "reason"),
    [
        (
            f"{VLLM}\nargs: [--enable-lora, --port=8200]",
            PLAIN,
            "the config guards http://127.0.0.1:8000, and vLLM listens at http://127.0.0.1:8200",
        ),
        (
            f"{VLLM}\nargs: [--enable-lora, --api-key, $(KEY)]\n{KEY}",
            PLAIN,
            "vLLM has an API key, and the config's server vllm has no api_key_file",
        ),
        (
            f"{VLLM}\nargs: [--enable-lora]",
            f"{PLAIN}    api_key_file: /keys/key\n",
            "/keys/key lies on no volume that could be shared with the sidecar",
        ),
        (
            f"{VLLM}\nargs: [--enable-lora]",
            f"{PLAIN}ops: {{bind: '127.0.0.1:9400'}}\n",
            "the config's ops.bind (127.0.0.1:9400) cannot be reached by the kubelet",
        ),
        (
            f"{VLLM}\nargs: [--enable-lora]\nports: [{{containerPort: 9500}}]",
            f"{PLAIN}ops: {{bind: '0.0.0.0:9500'}}\n",
            "port 9500 is taken, on which the sidecar would listen",
        ),
    ],
)
def test_a_config_that_does_not_fit(container: str, config: str, reason: str) -> None:
    """A config that is not for this pod is refused with the reason: the sidecar would wait for ever."""
    assert f"Deployment model: refused: {reason}" in refusal(deployment(container), config=given(config))


def test_what_is_unknown_matters_less_with_a_config() -> None:
    """With a config, a port that only the cluster knows is no obstacle."""
    text = deployment(f"{VLLM}\nargs: [--enable-lora, --port, $(PORT)]")

    assert yaml.safe_load(of_kind(done(text, config=given(PLAIN)), "ConfigMap")[0]["data"]["sidecar.yaml"])


def test_a_certificate_that_a_config_names() -> None:
    """Files that a config names for TLS and a socket are seen by the sidecar where the server's container sees them."""
    config = (
        "servers:\n  - name: vllm\n    url: https://127.0.0.1:8000\n"
        "    tls: {ca_file: /tls/ca.crt}\n  - name: other\n    url: unix:///run/vllm.sock\n"
    )
    text = deployment(
        f"{VLLM}\nargs: [--enable-lora]\nvolumeMounts: [{{name: tls, mountPath: /tls}}]",
        spec="  - name: other\n    image: vllm/vllm-openai\n    args: [--enable-lora, --uds, /run/vllm.sock]\n"
        "    volumeMounts: [{name: run, mountPath: /run}]\n"
        "volumes: [{name: tls, emptyDir: {}}, {name: run, emptyDir: {}}]",
    )

    assert mounts(done(text, config=given(config))) == {"/tls": "tls", "/run": "run"}


def test_two_keys_in_one_folder() -> None:
    """Two keys of two Secrets cannot be files of one folder, which is one volume."""
    config = f"{PLAIN}    engine: sglang\n    api_key_file: /keys/a\n    admin_api_key_file: /keys/b\n".replace(
        "8000", "30000"
    )
    text = deployment(
        "image: lmsysorg/sglang\nargs: [--enable-lora, --api-key, $(KEY), --admin-api-key, written-out]\n" + KEY
    )

    assert "two keys are to be files of /keys, which is one volume" in refusal(text, config=given(config))


def test_a_volume_by_an_expression() -> None:
    """A volume whose folder only the kubelet knows cannot be mounted a second time."""
    text = deployment(
        f"{VLLM}\nargs: [--enable-lora, --uds, /run/a]\n"
        "volumeMounts: [{name: run, mountPath: /run, subPathExpr: $(POD)}]"
    )

    assert "/run/a lies on a volume with a subPathExpr" in refusal(text)


def test_adapters_of_two_servers() -> None:
    """An adapter of one server of two is declared for that one, and of two paths for one name the first is taken."""
    container = f"{VLLM}\nargs: [--enable-lora, --lora-modules, a=/a, b=/b]"
    flags = "--enable-lora, --port=8100, --lora-modules, a=/a, b=/x"
    other = f"  - name: other\n    image: vllm/vllm-openai\n    args: [{flags}]"
    text = deployment(container, spec=other)

    assert config_of(done(text))["adapters"] == [
        {"name": "a", "path": "/a"},
        {"name": "b", "path": "/b", "servers": ["vllm"]},
    ]
    assert "the adapter b has two paths: /b is declared" in notes(text)[0]


def test_a_kserve_service_with_a_config() -> None:
    """What KServe's own template runs can be guarded by a config that says where it listens."""
    text = (
        "apiVersion: serving.kserve.io/v1alpha1\nkind: LLMInferenceService\nmetadata: {name: a}\nspec:\n"
        "  template:\n    containers:\n      - name: main\n        args: [--enable-lora]\n"
    )

    (service, config_map) = objects(done(text, config=given(PLAIN)))

    assert service["spec"]["template"]["initContainers"][0]["name"] == "lora-sidecar"
    once = done(text, config=given(PLAIN))
    assert injected(once).text == once  # also without the config
    assert not injected(once).refused
    assert config_map["metadata"]["name"] == "a-lora-sidecar"


def test_prefill_and_decode_of_kserve() -> None:
    """Both kinds of pods of one service get a sidecar, each with a config of its own."""
    pod = "containers: [{name: main, image: vllm/vllm-openai, command: [vllm, serve, x, --enable-lora, --port, '%s']}]"
    text = (
        "apiVersion: serving.kserve.io/v1alpha1\nkind: LLMInferenceService\nmetadata:\n  name: a\nspec:\n"
        f"  template:\n    {pod % 8001}\n  prefill:\n    template:\n      {pod % 8000}\n"
    )

    injected = done(text)

    maps = {
        one["metadata"]["name"]: yaml.safe_load(one["data"]["sidecar.yaml"]) for one in of_kind(injected, "ConfigMap")
    }
    assert maps["a-lora-sidecar"]["servers"][0]["url"] == "http://127.0.0.1:8001"
    assert maps["a-prefill-lora-sidecar"]["servers"][0]["url"] == "http://127.0.0.1:8000"
    assert removed(injected).text == text


def test_a_secret_is_no_place_for_base64() -> None:
    """A written key goes into stringData, which the API server encodes: encoding it here would encode it twice."""
    text = done(deployment(f"{VLLM}\nargs: [--enable-lora, --api-key, 'a: b']"))

    (secret,) = of_kind(text, "Secret")
    assert secret["stringData"]["api-key"] == "a: b"
    assert base64.b64encode(b"a: b").decode() not in text
