"""Strategies of Lightning whose ranks have parts of the model, with checkpoints on S3.

Lightning takes the path of such a checkpoint for a local one and never asks the plugin. These strategies save
and load what it does, at the same places of the state, through ``s3torch.dcp``.
"""

from __future__ import annotations

import io
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from s3torch.core import ConfigurationError, MissingPackageError
from s3torch.lightning._checkpoint_io import as_torch_takes_it, s3_plugin
from s3torch.lightning._paths import METADATA, is_on_s3, resumed_uri
from s3torch.lightning._shared_load import told_by_rank_0
from s3torch.lightning.plugin import lightning_class

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, ParallelStrategy

    from s3torch.core import S3Uri
    from s3torch.lightning._checkpoint_io import S3LightningCheckpoint
    from s3torch.lightning._shards import ShardsSaves
else:
    ParallelStrategy = object
    _MODULES = "lightning.pytorch.strategies", "pytorch_lightning.strategies"
    FSDPStrategy = lightning_class("FSDPStrategy", *_MODULES)
    ModelParallelStrategy = lightning_class("ModelParallelStrategy", *_MODULES)

# Where Lightning keeps what is no part of model or optimizers, and where it is in our state, to become
# visible together with the rest. The former is for those who read a copy with Lightning itself.
_LIGHTNING_FILE = "meta.pt"
_REST = "s3torch_lightning_rest"


class _S3Checkpoints(ParallelStrategy):
    """Saves and loads on S3 what the strategy behind it saves and loads on a local disk."""

    # The name of the model in the state.
    _model_key: str
    # Those of shards in the background, whose memory is used again until the run ends.
    _saves: ShardsSaves | None = None
    # Whether what is saved can be copied, so that training goes on meanwhile.
    _can_be_copied = True

    def _saves_shards(self) -> bool:
        raise NotImplementedError

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Saves a checkpoint, in shards or as one object; all ranks have to call it.

        Raises:
            ConfigurationError: The trainer has no ``S3LightningCheckpoint``.
            S3Error: The checkpoint could not be stored; with ``async_save``, an earlier one.
            CheckpointException: The same, of shards, on all ranks.
        """
        path = self.broadcast(filepath)
        if not is_on_s3(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        plugin, uri = self._plugin(), resumed_uri(path)
        if not self._saves_shards():
            if self.is_global_zero:
                plugin.save_checkpoint(checkpoint, str(uri), storage_options)
            return
        if storage_options is not None:
            raise ConfigurationError("sharded checkpoints take no storage_options; set them on the plugin")
        rest = dict(checkpoint)
        state = {self._model_key: rest.pop("state_dict")}
        for number, optimizer in enumerate(rest.pop("optimizer_states", [])):
            state[f"optimizer_{number}"] = optimizer
        self._save_shards(plugin, uri, state, rest)

    def _save_shards(
        self, plugin: S3LightningCheckpoint, uri: S3Uri, state: dict[str, Any], rest: dict[str, Any]
    ) -> None:
        shards, buffer = _shards(), io.BytesIO()
        if self.is_global_zero:
            torch.save(rest, buffer)
            state[_REST] = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
        writer = shards.ShardsWriter(plugin, uri, beside={_LIGHTNING_FILE: buffer.getbuffer()})
        if plugin._background is None or not self._can_be_copied:
            shards.save(state, storage_writer=writer)
            return
        if self._saves is None:
            self._saves = shards.ShardsSaves(plugin._background)
        self._saves.save(uri, state, writer)

    def load_checkpoint(
        self,
        checkpoint_path: str | Path,
        weights_only: bool | None = None,  # noqa: FBT001 - As Lightning has it.
    ) -> dict[str, Any]:
        """Loads a checkpoint into model and optimizers, whatever number of ranks has saved it.

        Of one that is a single object, only one rank reads it, and hands each rank its parts.

        Returns:
            What is no part of model or optimizers.

        Raises:
            ConfigurationError: The trainer has no ``S3LightningCheckpoint``.
            NotFoundError: There is no such checkpoint.
            S3Error: The checkpoint could not be read, or not be saved before.
        """
        path = self.broadcast(checkpoint_path)
        if not is_on_s3(path):
            # Lightning has the second argument since 2.6.
            arguments = () if weights_only is None else (weights_only,)
            return super().load_checkpoint(path, *arguments)
        plugin, uri = self._plugin(), resumed_uri(path)
        if told_by_rank_0(lambda: _is_sharded(plugin, uri)):
            return self._load_shards(plugin, uri, weights_only=weights_only)
        return self._load_whole(plugin, uri, weights_only=weights_only)

    def _load_shards(
        self, plugin: S3LightningCheckpoint, uri: S3Uri, *, weights_only: bool | None
    ) -> dict[str, Any]:
        from torch.distributed.checkpoint import DefaultLoadPlanner, load
        from torch.distributed.checkpoint import state_dict as states

        shards = _shards()
        model, optimizers, strict = self._targets()
        state: dict[str, Any] = {self._model_key: states.get_model_state_dict(model)}
        for name, optimizer in optimizers.items():
            state[name] = states.get_optimizer_state_dict(model, optimizer)
        reader = shards.S3StorageReader(
            plugin.region,
            str(uri),
            s3_client=plugin._client,
            process_group=dist.group.WORLD if dist.is_initialized() else None,
        )
        noted = reader.read_metadata().state_dict_metadata.get(_REST)
        if noted is not None:
            state[_REST] = torch.empty(noted.size, dtype=torch.uint8)
        load(state, storage_reader=reader, planner=DefaultLoadPlanner(allow_partial_load=not strict))
        states.set_model_state_dict(
            model, state[self._model_key], options=states.StateDictOptions(strict=strict)
        )
        for name, optimizer in optimizers.items():
            states.set_optimizer_state_dict(model, optimizer, state[name])
        if noted is not None:
            rest: Any = io.BytesIO(state[_REST].numpy().tobytes())
        else:
            # Lightning itself has written it, somewhere else.
            rest = plugin._client.get_object(uri.bucket, f"{uri.key}/{_LIGHTNING_FILE}")
        with rest:
            found: dict[str, Any] = torch.load(
                rest, map_location="cpu", weights_only=as_torch_takes_it(weights_only)
            )
        return found

    def _load_whole(
        self, plugin: S3LightningCheckpoint, uri: S3Uri, *, weights_only: bool | None
    ) -> dict[str, Any]:
        from torch.distributed.checkpoint import state_dict as states

        model, optimizers, strict = self._targets()
        whole: dict[str, Any] = {}

        def read() -> dict[str, Any]:
            rest = plugin._load(uri, "cpu", weights_only=weights_only, together=False)
            whole[self._model_key] = rest.pop("state_dict")
            saved = rest.pop("optimizer_states", [])
            if len(saved) < len(optimizers):
                raise ConfigurationError(f"{uri} has {len(saved)} optimizers, the model {len(optimizers)}")
            for name, optimizer in zip(optimizers, saved, strict=False):
                whole[name] = _with_names(optimizer, model)
            return rest

        rest = told_by_rank_0(read)
        options = states.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)
        states.set_model_state_dict(model, whole.get(self._model_key, {}), options=options)
        for name, optimizer in optimizers.items():
            states.set_optimizer_state_dict(model, optimizer, whole.get(name, {}), options=options)
        return rest

    def teardown(self) -> None:
        """Waits for saves in the background, too, which the strategies of Lightning do not."""
        super().teardown()
        saves, self._saves = self._saves, None
        try:
            self.checkpoint_io.teardown()
        finally:
            if saves is not None:
                saves.close()

    def _targets(self) -> tuple[Any, dict[str, Any], bool]:
        """Returns the model, its optimizers as far as they are restored, and whether names must match."""
        module: Any = self.lightning_module
        restored = self.optimizers if module.trainer.state.fn.value == "fit" else []
        optimizers = {f"optimizer_{number}": optimizer for number, optimizer in enumerate(restored)}
        return self.model, optimizers, module.strict_loading

    def _plugin(self) -> S3LightningCheckpoint:
        plugin = s3_plugin(self)
        if plugin is None:
            raise ConfigurationError(
                f"{type(self).__name__} needs Trainer(plugins=[S3LightningCheckpoint(...)]) for s3:// paths"
            )
        return plugin


class S3ModelParallelStrategy(_S3Checkpoints, ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` (FSDP2, tensor parallel) with checkpoints on S3.

    It takes the same arguments. With ``save_distributed_checkpoint=True`` a checkpoint is a folder in the
    layout of ``torch.distributed.checkpoint``, which any number of ranks loads, and with ``False`` an object.
    Region, endpoint and storage class are those of the ``S3LightningCheckpoint`` of the trainer. Sharded ones
    need ``pip install "s3torch-lightning[sharded]"``. For paths that are not on S3 nothing changes.
    """

    _model_key = "state_dict"

    def _saves_shards(self) -> bool:
        return self._save_distributed_checkpoint


class S3FSDPStrategy(_S3Checkpoints, FSDPStrategy):
    """Lightning's ``FSDPStrategy`` with checkpoints on S3; see ``S3ModelParallelStrategy``.

    ``state_dict_type`` says whether a checkpoint is sharded. A sharded one is never saved in the background.
    """

    _model_key = "model"
    # Its tensors are instances of ShardedTensor, which torch does not copy.
    _can_be_copied = False

    def _saves_shards(self) -> bool:
        return self._state_dict_type == "sharded"


def _with_names(optimizer: dict[str, Any], model: torch.nn.Module) -> dict[str, Any]:
    """Returns the state of an optimizer by the names of parameters, where it was saved by their numbers."""
    from torch.distributed.fsdp import FullyShardedDataParallel, OptimStateKeyType

    if not all(isinstance(key, int) for key in optimizer["state"]):
        return optimizer
    return FullyShardedDataParallel.rekey_optim_state_dict(optimizer, OptimStateKeyType.PARAM_NAME, model)


def _is_sharded(plugin: S3LightningCheckpoint, uri: S3Uri) -> bool:
    plugin._wait_for(uri)
    is_sharded = plugin._client.exists(uri.bucket, f"{uri.key}/{METADATA}")
    if is_sharded and plugin._client.exists(*uri):
        raise ConfigurationError(
            f"{uri} is both a sharded checkpoint and a single-file one; delete one of them"
        )
    return is_sharded


def _shards() -> Any:
    try:
        return import_module("s3torch.lightning._shards")
    except ImportError as exc:
        raise MissingPackageError(
            f"sharded checkpoints need s3torch-dcp ({exc}); pip install 's3torch-lightning[sharded]'"
        ) from exc
