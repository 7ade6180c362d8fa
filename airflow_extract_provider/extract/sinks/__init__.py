"""Where events go outside of Postgres. One file per sink, all behind the protocol in `sink.py`."""
