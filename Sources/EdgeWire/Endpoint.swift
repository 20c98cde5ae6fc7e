// The paths of the API and its limits: written once, used by the daemon's route table and by the client.

/// Paths under `/v1`. `{…}` is a parameter.
package enum Endpoint {
    package static let version = "1.0"

    package static let health = "/v1/health"
    package static let status = "/v1/status"
    package static let plan = "/v1/plan"
    package static let methods = "/v1/methods"
    /// Ranks for a job's linears; the body is the job.
    package static let ranks = "/v1/ranks"
    package static let generate = "/v1/generate"

    package static let jobs = "/v1/jobs"
    package static func job(_ id: String) -> String { "/v1/jobs/\(id)" }
    package static func jobEvents(_ id: String) -> String { "/v1/jobs/\(id)/events" }
    package static func jobLog(_ id: String) -> String { "/v1/jobs/\(id)/log" }
    package static func jobAction(_ id: String, _ action: JobAction) -> String { "/v1/jobs/\(id)/\(action.rawValue)" }

    package static func blob(_ digest: String) -> String { "/v1/blobs/\(digest)" }

    package static let models = "/v1/models"
    package static func model(_ name: String) -> String { "/v1/models/\(name)" }
    /// The import of a model of several files.
    package static func modelImport(_ name: String) -> String { "/v1/imports/\(name)" }
    package static let datasets = "/v1/datasets"
    package static func dataset(_ name: String) -> String { "/v1/datasets/\(name)" }

    package static let adapters = "/v1/adapters"
    package static func adapter(_ name: String) -> String { "/v1/adapters/\(name)" }
    /// One adapter made of several.
    package static let combinations = "/v1/combinations"
    /// The same by weights that examples choose.
    package static let compositions = "/v1/compositions"
    /// Files of the artifact, and those that are made from it on demand: `adapter_model.safetensors`, `adapter.safetensors`, `adapter.gguf`.
    package static func adapterFile(_ name: String, _ file: String) -> String { "/v1/adapters/\(name)/files/\(file)" }
    /// Of an adapter that has tasks: the file of what it is of one.
    package static func adapterFile(_ name: String, task: String, _ file: String) -> String {
        adapterFile(name, taskPrefix + "\(task).\(file)")
    }
    private static let taskPrefix = "task-"
    /// What `adapterFile` has made one name of; a task's has no dot.
    package static func taskAndFile(_ name: String) -> (task: String?, file: String) {
        guard name.hasPrefix(taskPrefix), let dot = name.firstIndex(of: ".") else { return (nil, name) }
        return (String(name[..<dot].dropFirst(taskPrefix.count)), String(name[name.index(after: dot)...]))
    }
    /// The base with the adapter in its weights; made by `POST`, and kept until `DELETE` or the next one.
    package static func mergedModel(_ name: String) -> String { "/v1/adapters/\(name)/merged" }
    package static func mergedFile(_ name: String, _ file: String) -> String { "/v1/adapters/\(name)/merged/\(file)" }
}

package enum JobAction: String, CaseIterable, Sendable { case cancel, pause, resume }

package enum Header {
    package static let idempotencyKey = "Idempotency-Key"
    package static let apiVersion = "Edgetune-Api-Version"
    /// Offset of a `PATCH` on a blob, in bytes.
    package static let uploadOffset = "Upload-Offset"
    /// Whole length of the blob, in bytes.
    package static let uploadLength = "Upload-Length"
    package static let problemType = "application/problem+json"
    package static let jsonLines = "application/jsonl"
}

package enum WireLimit {
    /// Largest JSON body, in bytes.
    package static let bodyBytes = 1 << 20
    package static let blobBytes: UInt64 = 64 << 30
    /// Files that one model is made from.
    package static let modelFiles = 1000
    package static let modelFileNameBytes = 255
    package static let modelSourceBytes = 400
    package static let queuedJobs = 1000
    package static let listedJobs = 1000
    package static let eventLineBytes = 64 << 10
    /// Events kept per job; older ones answer 410.
    package static let eventsPerJob = 20_000
    package static let logBytes = 1 << 20
    package static let idempotencyKeyBytes = 128
}
