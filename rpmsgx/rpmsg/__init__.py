"""rpmsg: endpoints, channels and the name service on a pair of virtqueues."""
