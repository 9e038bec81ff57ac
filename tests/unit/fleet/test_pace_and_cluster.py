from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_sidecar.fleet import pace
from lora_sidecar.fleet.cluster import Cluster, Credentials, NotInCluster, in_cluster, read_credentials

CHANCES = st.floats(0, 1, exclude_max=True)


@given(st.integers(1, 10_000), CHANCES, st.none() | st.floats())
def test_a_pause_is_never_below_a_second_nor_above_a_minute_and_one(
    failures: int, jitter: float, asked: float | None
) -> None:
    """No storm, and nobody stays away for long, whatever a server asks for."""
    assert 0.8 <= pace.after_failure(failures, asked, jitter) <= 61


def test_pauses_double() -> None:
    """As client-go's reflector: 0.8 s to 30 s, and up to as much again."""
    assert [pace.after_failure(failures, None, 0) for failures in range(1, 8)] == [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30]
    assert pace.after_failure(1, None, 0.5) == pytest.approx(1.2)


def test_what_the_server_asks_for_counts_where_it_is_longer() -> None:
    """`Retry-After` is a least time, and a spread on top keeps a fleet from coming back in step."""
    assert pace.after_failure(1, 7.0, 0.25) == pytest.approx(7.25)
    assert pace.after_failure(6, 1.0, 0.0) == pytest.approx(25.6)
    assert pace.after_failure(1, 86_400.0, 0.0) == 60


def test_other_times_lie_between_their_bounds() -> None:
    """A list every 5 to 15 minutes, a watch of 5 to 10, a second after 410, writes again after 0 to 50 ms and on."""
    assert (pace.until_relist(0), pace.until_relist(0.5)) == (300, 600)
    assert (pace.of_watch(0), pace.of_watch(0.5)) == (300, 450)
    assert (pace.after_expiry(0), pace.after_expiry(0.5)) == (0, 0.5)
    assert [pace.after_conflict(tries, 1) for tries in (1, 2, 6, 7, 1000)] == [0.05, 0.1, 1.6, 2.0, 2.0]
    assert pace.after_conflict(3, 0) == 0


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HOST": "10.0.0.1", "PORT": "443"}, Cluster("https://10.0.0.1:443", "/folder")),
        ({"HOST": "fd00::1", "PORT": "6443"}, Cluster("https://[fd00::1]:6443", "/folder")),
        ({"HOST": "10.0.0.1"}, None),
        ({"HOST": "", "PORT": ""}, None),
        ({}, None),
    ],
)
def test_where_the_api_is(variables: dict[str, str], expected: Cluster | None) -> None:
    """The kubelet's variables; without them there is no cluster, and that is told by name."""
    found = in_cluster({f"KUBERNETES_SERVICE_{name}": value for name, value in variables.items()}, "/folder")
    if expected is None:
        assert isinstance(found, NotInCluster)
        assert "KUBERNETES_SERVICE_HOST" in found.detail
    else:
        assert found == expected


def write_files(folder: Path, token: str = "secret\n", namespace: str = "default") -> None:
    """What the kubelet projects."""
    (folder / "token").write_text(token)
    (folder / "namespace").write_text(namespace)
    (folder / "ca.crt").write_text("PEM")


def test_credentials_are_what_the_files_hold(tmp_path: Path) -> None:
    """A line break at the end belongs to no token; without TLS no CA is looked for."""
    write_files(tmp_path)
    assert read_credentials(Cluster("https://x", str(tmp_path))) == Credentials("secret", "default", "PEM")
    (tmp_path / "ca.crt").unlink()
    assert read_credentials(Cluster("http://x", str(tmp_path))) == Credentials("secret", "default", "")
    with pytest.raises(FileNotFoundError):
        read_credentials(Cluster("https://x", str(tmp_path)))


@pytest.mark.parametrize("token", ["", "\n", "two\nlines", "non-ascii é", "bell \x07", "x" * 2_000_000])
def test_a_file_that_is_no_token_is_not_sent(tmp_path: Path, token: str) -> None:
    """It would make a header that no server understands, or a secret out of something else."""
    write_files(tmp_path, token=token)
    with pytest.raises(ValueError, match=r"token|ascii"):
        read_credentials(Cluster("http://x", str(tmp_path)))
