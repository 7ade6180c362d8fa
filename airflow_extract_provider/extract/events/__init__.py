"""From changes of records to events: what an event is, and the rules that find them."""
