// edgetune status
import ArgumentParser
import EdgeWire

struct Status: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "Show the daemon and its machine.")
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions

    func run() async throws {
        let status = try await daemon.client.get(HostStatus.self, Endpoint.status)
        try output.print(status) {
            var rows = [
                ("edgetuned", status.version + ", since " + Amount.time(status.startedAt)),
                ("kernels", status.kernelSet), ("cores", "\(status.cores)"),
                (
                    "memory",
                    "\(Amount.bytes(status.memoryAvailableBytes)) free of \(Amount.bytes(status.memoryTotalBytes))"
                ),
                ("disk", "\(Amount.bytes(status.diskFreeBytes)) free"),
                ("running", status.runningJobs.isEmpty ? "none" : status.runningJobs.joined(separator: ", ")), ("queued jobs", "\(status.queuedJobs)"),
                ("models", "\(status.models)"), ("adapters", "\(status.adapters)"),
            ]
            if !status.temperatures.isEmpty {
                let zones = status.temperatures.map { zone in
                    "\(zone.zone) \(Amount.fixed(zone.celsius, 0))"
                        + (zone.limitCelsius.map { " of \(Amount.fixed($0, 0))" } ?? "") + " °C"
                }
                rows.append(("temperature", zones.joined(separator: ", ")))
            }
            for policy in status.policies ?? [] {
                rows.append(("runs, by \(policy.name)", (policy.allows ? "" : "none may start: ") + policy.text))
            }
            if let waits = status.waits { rows.append(("the next job", waits)) }
            return Table.text(rows)
        }
    }
}
