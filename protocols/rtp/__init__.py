"""RTP, RTCP and SDP (RFC 3550, 3551, 3190, 7587, 8285, 8866): cores and their Twisted shell."""
