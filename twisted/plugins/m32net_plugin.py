"""Makes ``twistd m32net`` exist."""

from twisted.application.service import ServiceMaker

m32net = ServiceMaker(
    "m32net",
    "m32net.tap",
    "Personal monitoring: the console's channels to every musician's phone.",
    "m32net",
)
