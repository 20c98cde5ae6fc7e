// edgetune submit: a job file, flags over it, uploads, then the job or its plan.
import ArgumentParser
import EdgeWire
import EdgeYAML
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
        let upload = SubmitUpload(client: client, directory: file.map(Self.directory(of:)) ?? "")
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
        guard let local = try LocalFile(path: file) else {
            throw CommandFailure(.notFound, "there is no job file \(file)")
        }
        guard local.bytes <= YAMLLimit.bytes else {
            throw CommandFailure(.usage, "\(file) is over \(Amount.bytes(UInt64(YAMLLimit.bytes))): not a job file")
        }
        let text = local.bytes == 0 ? "" : String(buffer: try local.read(at: 0, count: Int(local.bytes)))
        var request = try JobFile.read(text: text, fileName: local.name)
        try keys.apply(to: &request)
        return request
    }

    /// With its final slash; "" for the current directory.
    private static func directory(of file: String) -> String {
        file.lastIndex(of: "/").map { String(file[...$0]) } ?? ""
    }
}

/// What a request names, made into what the daemon holds.
private struct SubmitUpload {
    let client: DaemonClient
    /// Paths in the job file are relative to it; paths in flags to the current directory.
    let directory: String

    private func path(_ value: String, isFlag: Bool) -> String {
        isFlag || value.hasPrefix("/") ? value : directory + value
    }

    func dataset(_ value: String, isFlag: Bool) async throws -> String {
        try await DatasetUpload(client: client).named(value, path: path(value, isFlag: isFlag))
    }

    func model(_ value: String, isFlag: Bool, held: [ModelRecord]) async throws -> String {
        if held.contains(where: { $0.name == value }) { return value }
        guard let source = try ModelSource(path: path(value, isFlag: isFlag)) else {
            try DatasetUpload.requireName(value, what: "model")
            return value
        }
        return try await ModelUpload.add(source, name: nil, to: client).name
    }

    func adapter(_ value: String, isFlag: Bool, baseModel: String) async throws -> String {
        guard let source = try AdapterSource(path: path(value, isFlag: isFlag)) else {
            try DatasetUpload.requireName(value, what: "adapter")
            return value
        }
        return try await source.add(name: nil, baseModel: baseModel, to: client).name
    }
}
