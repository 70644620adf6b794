# twistd -ny tac/m32net.tac
#
# The same server as `twistd m32net`, for those who would rather have a file than options.
# Settings come from M32NET_* in the environment and, if it is there, from m32net.toml beside
# the working directory.

from pathlib import Path

from twisted.application.service import Application

from m32net.tap import Options, makeService

options = Options()
options.parseOptions(["--config", "m32net.toml"] if Path("m32net.toml").exists() else [])

application = Application("m32net")
makeService(options).setServiceParent(application)
