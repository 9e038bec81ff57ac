"""Bugs that somebody could write, as edits of the source, each with the checker that is there to catch it.

The trap guarded against is a checker that checks nothing, and nobody knows. `caught_by` is a test that is there for
other reasons; `worlds` says that the simulation has to find the bug as well.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class Edit(Struct, frozen=True):
    """One replacement in one module; `old` occurs in it exactly once."""

    module: str
    old: str
    new: str


class Bug(Struct, frozen=True):
    """A planted bug: what is wrong, where, and the test that fails with it."""

    what: str
    edits: tuple[Edit, ...]
    caught_by: str
    worlds: bool = True


_CLIENT: Final = "lora_sidecar.engines.base"
_LOADER: Final = "lora_sidecar.actions.loader"
_STORE: Final = "lora_sidecar.checkpoint.store"
_DAY: Final = "tests/simulation/test_one_day_of_a_pod.py::"
_CRASH: Final = "tests/crash/test_checkpoint_"
_FILES: Final = "tests/simulation/test_adapter_files.py::"

BUGS: Final[dict[str, Bug]] = {
    "unknown-read-as-empty": Bug(
        "a refused listing is taken for one without adapters",
        (
            Edit(
                _CLIENT,
                '            return refusal("/v1/models", reply)\n',
                "            from lora_sidecar.core.observation import BaseModel\n"
                '            return Listing((BaseModel("base", "/models/tiny"),), ())\n',
            ),
        ),
        "tests/faults/test_wrong_answers_mean_unknown.py::test_it_is_unknown_and_nothing_is_done",
    ),
    "unknown-is-acted-on": Bug(
        "everything is loaded again when nothing is known",
        (
            Edit(
                "lora_sidecar.reconcile.reconcile",
                "    return _plan(beat, replace(state, recovery=back), Verdict.UNKNOWN)\n",
                "    plan = _plan(beat, replace(state, recovery=back), Verdict.UNKNOWN)\n"
                "    return replace(plan, restores=tuple(beat.desired.adapters.values()))\n",
            ),
        ),
        "tests/unit/reconcile/test_unknown_is_not_empty.py::test_unknown_before_anything_was_known_does_nothing",
    ),
    "forget-after-one-sighting": Bug(
        "one listing without an adapter is enough to forget it",
        (Edit("lora_sidecar.reconcile.absence", "_SIGHTINGS = 2", "_SIGHTINGS = 1"),),
        "tests/unit/reconcile/test_restart_or_unload.py::test_unloaded_in_one_life_is_forgotten_at_the_second_miss",
        worlds=False,
    ),
    "start-time-ignored": Bug(
        "a restart that was too quick to see is not told by the server's start time",
        (
            Edit(
                "lora_sidecar.reconcile.incarnation",
                "if known.start_time is not None and seen.start_time is not None:",
                "if known.start_time == seen.start_time is not None:",
            ),
        ),
        "tests/unit/reconcile/test_incarnation.py::test_evidence_is_ranked",
        worlds=False,
    ),
    "no-sync-of-the-file": Bug(
        "a save does not sync what it wrote",
        (Edit(_STORE, "            self._disk.fsync(file)\n", "            pass\n"),),
        _CRASH + "power_loss.py::test_power_loss_at_any_moment",
    ),
    "no-sync-of-the-directory": Bug(
        "a save comes back before its new name is durable",
        (
            Edit(
                _STORE,
                "                self._disk.fsync_directory(directory)\n            if has_kept",
                "                pass\n            if has_kept",
            ),
        ),
        _CRASH + "power_loss.py::test_power_loss_at_any_moment",
    ),
    "renamed-before-the-sync": Bug(
        "a save syncs its file only after it has its name",
        (
            Edit(_STORE, "            self._disk.fsync(file)\n", "            pass\n"),
            Edit(
                _STORE,
                "                self._disk.rename(directory, fresh, self._current)\n",
                "                self._disk.rename(directory, fresh, self._current)\n"
                "                late = os.open(self._current, os.O_RDONLY, dir_fd=directory)\n"
                "                self._disk.fsync(late)\n"
                "                os.close(late)\n",
            ),
        ),
        _CRASH + "errors.py::test_order_of_a_save",
        worlds=False,
    ),
    "ambiguous-load-sent-again": Bug(
        "a load that broke off is sent once more, as a probe is",
        (
            Edit(
                "lora_sidecar.engines.http",
                'lambda: self._exchange("POST", path, body)',
                "lambda: self._again(path, body)",
            ),
            Edit(
                "lora_sidecar.engines.http",
                "    async def _persist(",
                "    async def _again(self, path, body):\n"
                '        result = await self._exchange("POST", path, body)\n'
                '        return await self._exchange("POST", path, body) if _broke_off(result) else result\n\n'
                "    async def _persist(",
            ),
        ),
        "tests/faults/test_loads_that_break_off.py::test_a_load_that_broke_off_is_ambiguous_and_never_sent_again",
    ),
    "liveness-stamped-before-the-cycle": Bug(
        "the stamp that liveness looks at is that of a heartbeat's beginning",
        (Edit("lora_sidecar.controller", "beat_at=ended", "beat_at=began"),),
        "tests/simulation/test_clocks.py::test_liveness_is_stamped_when_a_heartbeat_has_ended",
    ),
    "wall-clock": Bug(
        "time is reckoned by the wall clock, which somebody may set",
        (Edit("lora_sidecar.controller", "        self.now = now\n", '        self.now = __import__("time").time\n'),),
        "tests/simulation/test_clocks.py::test_the_wall_clock_may_jump_by_years",
    ),
    "stale-plan-carried-out": Bug(
        "a plan made for one life of the server is finished in the next",
        (
            Edit(
                _LOADER,
                "        self._next = 0\n        self._large = []\n        super().offer(plan, engine)\n",
                "        if former is None or self._next >= len(former.restores):\n"
                "            self._next = 0\n"
                "            super().offer(plan, engine)\n",
            ),
        ),
        "tests/unit/actions/test_loader.py::test_a_plan_for_a_former_life_is_dropped_at_once",
    ),
    "plan-of-a-former-life-not-abandoned": Bug(
        "a load into a life that is over is waited for",
        (
            Edit(
                _LOADER,
                "if former is not None and former.incarnation != plan.incarnation:",
                "if former is not None and former.incarnation > plan.incarnation:",
            ),
        ),
        "tests/unit/actions/test_loader.py::test_a_new_life_gets_what_was_in_flight_in_the_old_one",
        worlds=False,
    ),
    "backoff-reset-too-early": Bug(
        "an adapter that was listed for a moment has a clean slate",
        (
            Edit(
                "lora_sidecar.reconcile.loads",
                "if attempt.failures == 0 or beat.now - since >= beat.policy.backoff.reset_after:",
                "if since:",
            ),
        ),
        _DAY + "test_failures_back_off_and_hold_up_nobody",
        worlds=False,
    ),
    "no-backoff": Bug(
        "a load that failed is sent again at once",
        (Edit("lora_sidecar.reconcile.backoff", "not_before=clock.now + wait", "not_before=clock.now"),),
        "tests/unit/reconcile/test_loads_and_backoff.py::test_failures_in_a_row_wait_longer_each_time",
    ),
    "lost-lock": Bug(
        "two processes may use one checkpoint",
        (Edit(_STORE, "return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)", "return None"),),
        _CRASH + "intruders.py::test_second_process_is_refused_and_the_holder_unharmed",
        worlds=False,
    ),
    "load-into-a-sleeping-engine": Bug(
        "nobody asks whether the engine is awake",
        (Edit(_LOADER, "result = await engine.load_blocked(plan.incarnation)", "result = None"),),
        _DAY + "test_a_sleeping_engine_is_left_alone",
    ),
    "acts-before-it-remembers": Bug(
        "the plan is handed over before it is durable",
        (
            Edit(
                "lora_sidecar.controller",
                "        self._desired, events = await self._checkpoint.keep(plan.desired)\n",
                "        if self._engine is not None:\n"
                "            self.loader.offer(plan, self._engine)\n"
                "        self._desired, events = await self._checkpoint.keep(plan.desired)\n",
            ),
            Edit("lora_sidecar.controller", "            self.loader.offer(plan, engine)\n", ""),
        ),
        "tests/simulation/test_many_lives.py::test_a_world_of_restarts",
    ),
    "loaded-again-before-a-listing": Bug(
        "what has just been loaded is loaded again, since the listing behind the plan is older",
        (
            Edit(_LOADER, "key not in self._under_way and self._is_due(adapter.name, plan)", "key not in self._under_way"),
        ),
        "tests/unit/actions/test_loader.py::test_what_was_loaded_after_the_listing_is_not_sent_again",
    ),
    "error-of-the-disk-read-as-absent": Bug(
        "a folder that cannot be seen for a moment is taken for gone",
        (
            Edit(
                "lora_sidecar.files.folder",
                "    except OSError as error:\n        return _unseen(error)\n",
                "    except OSError as error:\n        return Absent(_unseen(error).why)\n",
            ),
        ),
        _FILES + "test_a_folder_that_answers_with_an_error_unloads_nothing",
        worlds=False,
    ),
    "fingerprint-of-metadata": Bug(
        "a file that was copied anew is taken for another",
        (
            Edit(
                "lora_sidecar.files.folder",
                '    digest.update(f"{name} {size}\\n".encode())\n',
                '    digest.update(f"{name} {size} {os.fstat(file).st_ino}\\n".encode())\n',
            ),
        ),
        _FILES + "test_files_copied_anew_do_not_end_a_quarantine",
        worlds=False,
    ),
    "advice-that-holds-back": Bug(
        "an adapter that our own rules speak against is not sent, whatever the engine says",
        (Edit("lora_sidecar.files.preflight", "if one.holds is not None), None)", "), None)"),),
        _FILES + "test_a_broken_adapter_is_sent_and_refused_in_the_engines_own_words",
        worlds=False,
    ),
    "engine-by-the-configs-word": Bug(
        "what SGLang would die of is held back from whatever serves there",
        (Edit("lora_sidecar.files.preflight", "base, self.engine, config", 'base, "sglang", config'),),
        "tests/unit/files/test_preflight.py::test_a_listing_of_sglang_is_no_proof_of_weights",
        worlds=False,
    ),
    "room-that-was-there-once": Bug(
        "how many loads may be in flight is decided before a question that may take seconds, and not after it",
        (Edit(_LOADER, "len(self._turns) <= self._width()", "self._turns is not None"),),
        "tests/unit/actions/test_loader.py::test_a_server_that_took_its_time_is_met_with_one_load_at_a_time",
        worlds=False,
    ),
}
