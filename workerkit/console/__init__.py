"""The console: see all processes of an application, and act on them.

An `Agent` reports on its own process and executes commands. A `Source` reaches the agents of other
processes: over RabbitMQ (`Fleet`) or over HTTP (`Targets`). The `Overview` asks its sources while
somebody looks, and merges the reports into one `FleetView`. The views of the API serve that, and
the page draws it. `dead_letters` reads, replays and deletes dead letters.
"""
