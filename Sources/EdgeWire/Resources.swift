// Models, data sets, adapters, blobs, text generation and the daemon's own status, as the API shows them.
import Foundation

/// `POST /v1/datasets`: makes a named data set from an uploaded blob.
package struct ImportRequest: Codable, Equatable, Sendable {
    package var name: String
    /// `sha256:` and 64 hex digits.
    package var blob: String
    package init(name: String, blob: String) {
        self.name = name
        self.blob = blob
    }
}

/// `POST /v1/adapters`: an adapter that another program has made, from uploaded blobs.
package struct AdapterImportRequest: Codable, Equatable, Sendable {
    package var name: String
    /// A model that the daemon holds: its shape is what the adapter is checked against.
    package var baseModel: String
    /// safetensors, LZ4-framed or not, or a GGUF adapter.
    package var tensors: String
    /// adapter_config.json; a GGUF adapter has none.
    package var config: String?
    package init(name: String, baseModel: String, tensors: String, config: String?) {
        self.name = name
        self.baseModel = baseModel
        self.tensors = tensors
        self.config = config
    }
}

/// What the model's file says of itself.
package struct ModelReport: Codable, Equatable, Sendable {
    package var architecture: String
    package var title: String?
    package var layers: Int
    package var hiddenSize: Int
    package var vocabulary: Int
    package var contextLength: Int
    package var parameters: Int
    /// Quantisation formats of the weights with their share of the bytes, largest first: "Q4_1 71 %".
    package var quantisation: String
    package var fileBytes: UInt64
    /// Names that `lora_target_modules` accepts.
    package var targetModules: [String]

    package init(
        architecture: String, title: String?, layers: Int, hiddenSize: Int, vocabulary: Int, contextLength: Int,
        parameters: Int, quantisation: String, fileBytes: UInt64, targetModules: [String]
    ) {
        self.architecture = architecture
        self.title = title
        self.layers = layers
        self.hiddenSize = hiddenSize
        self.vocabulary = vocabulary
        self.contextLength = contextLength
        self.parameters = parameters
        self.quantisation = quantisation
        self.fileBytes = fileBytes
        self.targetModules = targetModules
    }
}

package struct ModelRecord: Codable, Equatable, Sendable {
    package var name: String
    package var blob: String
    package var ownerUid: UInt32
    package var createdAt: Date
    package var model: ModelReport
    /// What `blob` was made from, where that was several files; they are not kept.
    package var files: [ModelFile]?
    /// As the request had it.
    package var source: String?
    package init(
        name: String, blob: String, ownerUid: UInt32, createdAt: Date, model: ModelReport, files: [ModelFile]? = nil,
        source: String? = nil
    ) {
        self.name = name
        self.blob = blob
        self.ownerUid = ownerUid
        self.createdAt = createdAt
        self.model = model
        self.files = files
        self.source = source
    }
}

/// What the lines of a data set are.
package struct DatasetReport: Codable, Equatable, Sendable {
    package var samples: Int
    /// `messages`, `prompt_completion`, `instruction` or `text`, with their counts.
    package var kinds: [String: Int]
    package init(samples: Int, kinds: [String: Int]) {
        self.samples = samples
        self.kinds = kinds
    }
}

package struct DatasetRecord: Codable, Equatable, Sendable {
    package var name: String
    package var blob: String
    package var bytes: UInt64
    package var ownerUid: UInt32
    package var createdAt: Date
    package var dataset: DatasetReport
    package init(name: String, blob: String, bytes: UInt64, ownerUid: UInt32, createdAt: Date, dataset: DatasetReport) {
        self.name = name
        self.blob = blob
        self.bytes = bytes
        self.ownerUid = ownerUid
        self.createdAt = createdAt
        self.dataset = dataset
    }
}

package struct AdapterRecord: Codable, Equatable, Sendable {
    package struct File: Codable, Equatable, Sendable {
        package var name: String
        package var bytes: UInt64
        package init(name: String, bytes: UInt64) {
            self.name = name
            self.bytes = bytes
        }
    }
    package var name: String
    package var job: String
    package var baseModel: String
    package var ownerUid: UInt32
    package var createdAt: Date
    /// Directory on the daemon's machine, for people; a client fetches `files`.
    package var path: String
    package var files: [File]
    package init(
        name: String, job: String, baseModel: String, ownerUid: UInt32, createdAt: Date, path: String, files: [File]
    ) {
        self.name = name
        self.job = job
        self.baseModel = baseModel
        self.ownerUid = ownerUid
        self.createdAt = createdAt
        self.path = path
        self.files = files
    }
}

package struct ModelList: Codable, Equatable, Sendable {
    package var models: [ModelRecord]
    /// Under way or failed; not there when there is none.
    package var imports: [ModelImportStatus]?
    package init(models: [ModelRecord], imports: [ModelImportStatus]? = nil) {
        self.models = models
        self.imports = imports
    }
}

package struct DatasetList: Codable, Equatable, Sendable {
    package var datasets: [DatasetRecord]
    package init(datasets: [DatasetRecord]) { self.datasets = datasets }
}

package struct AdapterList: Codable, Equatable, Sendable {
    package var adapters: [AdapterRecord]
    package init(adapters: [AdapterRecord]) { self.adapters = adapters }
}

/// `GET /v1/blobs/{digest}`: how much of an upload has arrived. The next `PATCH` starts at `received_bytes`.
package struct BlobStatus: Codable, Equatable, Sendable {
    package var digest: String
    package var receivedBytes: UInt64
    package var complete: Bool
    package init(digest: String, receivedBytes: UInt64, complete: Bool) {
        self.digest = digest
        self.receivedBytes = receivedBytes
        self.complete = complete
    }
}

package struct ChatMessage: Codable, Equatable, Sendable {
    package var role: String
    package var content: String
    package init(role: String, content: String) {
        self.role = role
        self.content = content
    }
}

/// `POST /v1/generate`; answers with `GenerateEvent` lines.
package struct GenerateRequest: Codable, Equatable, Sendable {
    package var model: String
    package var adapter: String?
    /// Of an adapter that has tasks, the one that it answers for.
    package var task: String?
    package var messages: [ChatMessage]
    package var maxTokens: Int = 256
    /// 0: the most likely token at each place.
    package var temperature: Double = 0
    package var seed: UInt64 = 42

    package init(model: String, adapter: String?, messages: [ChatMessage]) {
        self.model = model
        self.adapter = adapter
        self.messages = messages
    }

    private enum CodingKeys: String, CodingKey { case model, adapter, task, messages, maxTokens, temperature, seed }

    package init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        self.init(
            model: try values.decode(String.self, forKey: .model),
            adapter: try values.decodeIfPresent(String.self, forKey: .adapter),
            messages: try values.decode([ChatMessage].self, forKey: .messages))
        task = try values.decodeIfPresent(String.self, forKey: .task)
        maxTokens = try values.decodeIfPresent(Int.self, forKey: .maxTokens) ?? maxTokens
        temperature = try values.decodeIfPresent(Double.self, forKey: .temperature) ?? temperature
        seed = try values.decodeIfPresent(UInt64.self, forKey: .seed) ?? seed
    }
}

/// One line of a generation: some text, and at the end the counts. A problem may be the last line instead.
package struct GenerateEvent: Codable, Equatable, Sendable {
    package var text: String?
    package var done: Bool
    package var promptTokens: Int?
    package var generatedTokens: Int?
    package var tokensPerSecond: Double?
    package var problem: Problem?
    package init(
        text: String? = nil, done: Bool = false, promptTokens: Int? = nil, generatedTokens: Int? = nil,
        tokensPerSecond: Double? = nil, problem: Problem? = nil
    ) {
        self.text = text
        self.done = done
        self.promptTokens = promptTokens
        self.generatedTokens = generatedTokens
        self.tokensPerSecond = tokensPerSecond
        self.problem = problem
    }
}

/// `GET /v1/status`.
package struct HostStatus: Codable, Equatable, Sendable {
    package struct Temperature: Codable, Equatable, Sendable {
        package var zone: String
        package var celsius: Double
        /// From which runs pause; nil: this zone pauses nothing.
        package var limitCelsius: Double?
        package init(zone: String, celsius: Double, limitCelsius: Double? = nil) {
            self.zone = zone
            self.celsius = celsius
            self.limitCelsius = limitCelsius
        }
    }
    /// What one policy makes of the machine now.
    package struct Policy: Codable, Equatable, Sendable {
        package var name: String
        /// A run may start.
        package var allows: Bool
        /// The figures, and where the limits are.
        package var text: String
        package init(name: String, allows: Bool, text: String) {
            self.name = name
            self.allows = allows
            self.text = text
        }
    }
    package var version: String
    package var startedAt: Date
    package var kernelSet: String
    package var cores: Int
    package var memoryTotalBytes: UInt64
    package var memoryAvailableBytes: UInt64
    package var diskFreeBytes: UInt64
    package var temperatures: [Temperature]
    /// Several when they train together.
    package var runningJobs: [String]
    package var queuedJobs: Int
    package var models: Int
    package var adapters: Int
    /// Nil from a daemon that has none.
    package var policies: [Policy]?
    /// Why the job that is next does not run; nil when none waits.
    package var waits: String?
    package init(
        version: String, startedAt: Date, kernelSet: String, cores: Int, memoryTotalBytes: UInt64,
        memoryAvailableBytes: UInt64, diskFreeBytes: UInt64, temperatures: [Temperature], runningJobs: [String],
        queuedJobs: Int, models: Int, adapters: Int
    ) {
        self.version = version
        self.startedAt = startedAt
        self.kernelSet = kernelSet
        self.cores = cores
        self.memoryTotalBytes = memoryTotalBytes
        self.memoryAvailableBytes = memoryAvailableBytes
        self.diskFreeBytes = diskFreeBytes
        self.temperatures = temperatures
        self.runningJobs = runningJobs
        self.queuedJobs = queuedJobs
        self.models = models
        self.adapters = adapters
    }
}
