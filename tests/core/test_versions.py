import pytest

from exvideo_core.types import ExVideoError
from exvideo_core.versions import require_version


@pytest.mark.parametrize("version", ["0.3.75", "0.3.75rc1", "0.4.0", "0.25.0", "1.0"])
def test_a_new_enough_host_passes(version):
    require_version(version)


@pytest.mark.parametrize("version", ["0.3.74", "0.2.99"])
def test_an_old_host_is_told_so(version):
    with pytest.raises(ExVideoError, match=rf"0\.3\.75 or newer, this is {version}: please update it"):
        require_version(version)
