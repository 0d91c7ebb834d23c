"""Config section of the mirror: where the copy of a run is kept, and how it is kept up to date."""

from typing import Self

from pydantic import Field, model_validator

from envs.config import Section
from rollout.mirror.address import parse_address


class MirrorConfig(Section):
    """`[mirror]`: a copy of the run on object storage, made behind the run; see docs/storage.md.

    Credentials never stand here: they come from the environment, as each storage's own tools take
    them (`AWS_ACCESS_KEY_ID`, `~/.aws/credentials`, `GOOGLE_APPLICATION_CREDENTIALS`).
    """

    url: str = ""
    """Folder of mirrors: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `file:///FOLDER`. The run's
    own mirror is `url/NAME`, as its directory is `run.dir/NAME`. Empty: no mirror.
    """
    endpoint: str = ""
    """`http(s)://HOST:PORT` of S3-compatible storage that is not Amazon's; empty means
    `AWS_ENDPOINT_URL` of the environment, or Amazon.
    """
    region: str = ""
    """Region of the bucket; empty means `AWS_DEFAULT_REGION` of the environment."""
    interval_s: float = Field(default=30.0, ge=0.05)
    """Seconds between two states of the mirror: what a lost cluster loses at most while the storage
    keeps up, apart from a checkpoint that is still on its way.
    """
    max_mib_per_s: float = Field(default=0.0, ge=0)
    """Bound of the upload in MiB per second; 0 means none."""
    lease_s: float = Field(default=60.0, ge=2)
    """A writer that the storage has not heard of for this long counts as gone: another may then
    resume the run from its mirror.
    """
    final_wait_s: float = Field(default=300.0, ge=0)
    """Seconds that the end of a run waits for the mirror to catch up; what is missing is named."""

    @model_validator(mode="after")
    def _is_an_address(self) -> Self:
        if self.url:
            parse_address(self.url, self.endpoint, self.region)
        elif self.endpoint or self.region:
            raise ValueError("mirror.endpoint and mirror.region need a mirror.url")
        return self
