// edgetune submit: a job file, flags over it, uploads, then the job or its plan.
import ArgumentParser
import EdgeWire
import Foundation

struct Submit: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Submit a job from a file, from flags, or from a file with flags over it.")
    @OptionGroup var daemon: DaemonOptions
    @OptionGroup var output: OutputOptions
    @OptionGroup(title: "Job") var keys: JobFlags
    @Argument(help: "Job file (YAML).") var file: String?
    @Flag(help: "Upload and plan only: show the memory plan and stop.") var dryRun = false
    @Flag(help: "Follow the job to its end.") var watch = false

    func validate() throws {
        if dryRun && watch { throw ValidationError("--dry-run starts nothing that --watch could follow") }
        if file == nil, keys.baseModel == nil || keys.dataset.isEmpty {
            throw ValidationError("give a job file, or --base-model and --dataset")
        }
    }

    func run() async throws {
        var request = try requested()
        try request.validate()
        let client = daemon.client
        let upload = JobUpload(client: client, directory: file.map(JobSource.directory(of:)) ?? "")
        // The first call: a daemon that is not there is told at once, before files are read.
        let held = try await client.get(ModelList.self, Endpoint.models).models
        request.baseModel = try await upload.model(
            request.baseModel, isFlag: keys.baseModel != nil, held: held)
        for index in request.datasets.indices {
            request.datasets[index].path = try await upload.dataset(
                request.datasets[index].path, isFlag: !keys.dataset.isEmpty)
        }
        if let adapter = request.initFromAdapter {
            request.initFromAdapter = try await upload.adapter(
                adapter, isFlag: keys.initFromAdapter != nil, baseModel: request.baseModel)
        }
        if dryRun {
            let plan = try await client.repeated { () async throws(DaemonError) in
                try await client.post(PlanReport.self, Endpoint.plan, request)
            }
            try output.print(plan) { PlanText.whole(plan) }
            return
        }
        let key = UUID().uuidString
        let job = try await client.repeated { () async throws(DaemonError) in
            try await client.post(JobStatus.self, Endpoint.jobs, request, headers: [(Header.idempotencyKey, key)])
        }
        try output.print(job) { JobText.line(job) }
        if watch { try await JobWatch.follow(job.id, on: client, json: output.json) }
    }

    private func requested() throws -> JobRequest {
        guard let file else {
            var request = JobRequest(baseModel: "", datasets: [])
            try keys.apply(to: &request)
            return request
        }
        var request = try JobSource(file).request
        try keys.apply(to: &request)
        return request
    }
}
