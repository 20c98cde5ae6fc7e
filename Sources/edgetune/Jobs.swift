// edgetune jobs
import ArgumentParser
import EdgeWire

struct Jobs: AsyncParsableCommand {
    static let configuration = CommandConfiguration(abstract: "List jobs.")
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @Option(help: "Only jobs in this state: \(JobState.allCases.map(\.rawValue).joined(separator: ", ")).")
    var state: JobState?

    func run() async throws {
        var list = try await daemon.client.get(JobList.self, Endpoint.jobs)
        if let state { list.jobs = list.jobs.filter { $0.state == state } }
        try output.print(list) {
            guard !list.jobs.isEmpty else { return "no jobs" }
            return Table.text(
                ["JOB", "NAME", "STATE", "STEP", "LOSS", "CREATED"],
                list.jobs.map { job in
                    [
                        job.id, job.name, job.state.rawValue,
                        job.progress.map { "\($0.step)/\($0.totalSteps)" } ?? "-",
                        job.progress.map { Amount.fixed($0.loss, 3) } ?? "-", Amount.time(job.createdAt),
                    ]
                })
        }
    }
}

extension JobState: ExpressibleByArgument {}
