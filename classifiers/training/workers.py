"""The processes that train one network together, over torch.distributed; one alone needs none of it."""

import torch.distributed as dist
from torch import Tensor, nn

from infra.errors import ConfigError


class Workers:
    """This process among those that train one network.

    Args:
        rank: This process's number, from 0.
        count: How many there are; of several each has initialised torch.distributed.

    Raises:
        ConfigError: There is no such worker, or torch.distributed knows another number of them.
    """

    def __init__(self, rank: int, count: int) -> None:
        if not 0 <= rank < count:
            raise ConfigError(f"there is no worker {rank} among {count}")
        if count > 1 and not (dist.is_initialized() and dist.get_world_size() == count and dist.get_rank() == rank):
            raise ConfigError(f"worker {rank} of {count} needs torch.distributed initialised with as many processes")
        self.rank, self.count = rank, count

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum over the workers, the same on each; the values are overwritten."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def share_buffers(self, network: nn.Module) -> None:
        """Give every worker the first one's buffers, such as the statistics of batch normalisations."""
        if self.count > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, src=0)
