// What `serve` and `work` say to each other over the worker's stdin and stdout: one JSON value a line.
// `serve` writes one WorkOrder, then WorkSignal lines, and closes stdin when the worker should go away.
// The worker answers with WorkMessage lines, of which `result` or `failure` is the last. Paths here are the daemon's own.
import EdgeWire

package enum WorkOrder: Codable, Sendable {
    case train(TrainOrder)
    /// Answers with `planned`. Opens the model's header and the data set, maps no weights.
    case plan(TrainOrder)
    /// Says how many of these jobs can train together, and answers with `plannedTogether`.
    case planTogether([TrainOrder])
    /// Answers for each job, with `ofJob`, and then with `jobsEnded`.
    case trainTogether(TogetherOrder)
    /// Plans a job of every PEFT method for made-up samples, and answers with `comparedMethods`.
    case compareMethods(MethodsOrder)
    /// Measures how much each linear matters. Says `ranking` meanwhile, and answers with `ranked`.
    case rankLinears(RanksOrder)
    /// Measures the board for plans' times, and answers with `calibrated`.
    case calibrate(CalibrateOrder)
    /// Answers with `inspectedModel`.
    case inspectModel(path: String)
    /// Reads the headers of a model's files, and answers with `plannedImport`.
    case planImport(files: [SourceFile])
    /// Makes one file of them, says `imported` meanwhile, and answers with `importedModel`. Goes on where an earlier worker
    /// with the same order stopped.
    case importModel(ImportOrder)
    /// Answers with `importedAdapter`.
    case importAdapter(ImportAdapterOrder)
    /// Publishes one adapter made of several, and answers with `importedAdapter`.
    case combineAdapters(CombineOrder)
    /// Publishes several adapters mixed by weights that examples choose. Says `composing` meanwhile, and answers with `composed`.
    case composeAdapters(ComposeOrder)
    /// Answers with `inspectedDataset`.
    case inspectDataset(path: String)
    /// Streams `generated`; the last one has `done` or a problem, and ends the worker.
    case generate(GenerateOrder)
    /// Writes one file made from the artifact, and answers with `exported`.
    case export(ExportOrder)
    /// Writes a directory with a merged model. Streams `merging`; the last one has the report or a problem, and ends the worker.
    case merge(MergeOrder)

    package struct MethodsOrder: Codable, Sendable {
        package var request: MethodsRequest
        package var modelPath: String
        package var threads: Int
        package var budgetBytes: UInt64
        package var budgetReason: String?
        package var calibrationPath: String?
        /// MemAvailable: whether the model's file can stay in the page cache.
        package var availableBytes: UInt64?

        package init(request: MethodsRequest, modelPath: String, threads: Int, budgetBytes: UInt64, budgetReason: String?) {
            self.request = request
            self.modelPath = modelPath
            self.threads = threads
            self.budgetBytes = budgetBytes
            self.budgetReason = budgetReason
        }
    }

    package struct RanksOrder: Codable, Sendable {
        /// A share of a board's memory.
        package struct Budget: Codable, Sendable {
            package var bytes: UInt64
            package var reason: String
            package init(bytes: UInt64, reason: String) {
                self.bytes = bytes
                self.reason = reason
            }
        }
        package var request: JobRequest
        /// How many are looked at, at most.
        package var samples: Int
        package var modelPath: String
        package var datasetPaths: [String]
        /// Of the measurement.
        package var budgetBytes: UInt64
        /// What the job is to fit with its ranks; nil: they have the parameters of the job's own rank everywhere.
        package var jobBudget: Budget?

        package init(request: JobRequest, samples: Int, modelPath: String, datasetPaths: [String], budgetBytes: UInt64, jobBudget: Budget?) {
            self.request = request
            self.samples = samples
            self.modelPath = modelPath
            self.datasetPaths = datasetPaths
            self.budgetBytes = budgetBytes
            self.jobBudget = jobBudget
        }
    }

    package struct TrainOrder: Codable, Sendable {
        package var job: String
        package var request: JobRequest
        package var modelPath: String
        /// `sha256:` of the model's file: what the adapter is stamped with.
        package var modelDigest: String
        package var datasetPaths: [String]
        /// The worker alone writes here: `checkpoints/`, and `adapter/`, which is the published artifact.
        package var directory: String
        package var budgetBytes: UInt64
        /// Which bound the budget is.
        package var budgetReason: String?
        /// Steps between checkpoints when the request does not say.
        package var defaultSaveSteps: Int
        /// What the worker that planned this job measured of itself: the plan is to be the same one.
        package var processBytes: UInt64?
        /// Findings of `calibrate` for this job's precision and threads; nil or not there: times are not predicted.
        package var calibrationPath: String?
        /// MemAvailable: whether the model's file can stay in the page cache.
        package var availableBytes: UInt64?
        /// Of the adapter that training begins from; nil: PEFT's start.
        package var initialAdapterDirectory: String?
        /// Of the model that the request's start compares the base with; nil where it names none.
        package var originalModelPath: String?
        package var originalModelDigest: String?
        /// Directory of the cgroup that the worker joins first of all; nil where the daemon has none to give.
        package var controlGroup: String?
        /// No file of the run is larger by its plan; nil before there is one.
        package var largestFileBytes: UInt64?
        package var scheduling = WorkerScheduling()
        /// The kernel holds the group to `scheduling.cpuQuota`; else the worker does, by resting.
        package var groupHoldsQuota = false

        package init(
            job: String, request: JobRequest, modelPath: String, modelDigest: String, datasetPaths: [String], directory: String,
            budgetBytes: UInt64, budgetReason: String?, defaultSaveSteps: Int
        ) {
            self.budgetReason = budgetReason
            self.job = job
            self.request = request
            self.modelPath = modelPath
            self.modelDigest = modelDigest
            self.datasetPaths = datasetPaths
            self.directory = directory
            self.budgetBytes = budgetBytes
            self.defaultSaveSteps = defaultSaveSteps
        }
    }

    /// Jobs of one user on one base, for one process: it may read and write whatever each of them may.
    package struct TogetherOrder: Codable, Sendable {
        /// At least two. What concerns the process is as the first has it: its cgroup, priority, files' largest size.
        package var jobs: [TrainOrder]
        package var plan: TogetherPlan

        package init(jobs: [TrainOrder], plan: TogetherPlan) {
            self.jobs = jobs
            self.plan = plan
        }
    }

    package struct CalibrateOrder: Codable, Sendable {
        package var precision: Precision
        package var threads: Int
        /// The worker writes its findings here, and nothing else.
        package var path: String
        package init(precision: Precision, threads: Int, path: String) {
            self.precision = precision
            self.threads = threads
            self.path = path
        }
    }

    /// A file of a model, under the name that it has where it comes from.
    package struct SourceFile: Codable, Sendable {
        package var name: String
        package var path: String
        package init(name: String, path: String) {
            self.name = name
            self.path = path
        }
    }

    package struct ImportOrder: Codable, Sendable {
        package var files: [SourceFile]
        /// The worker writes here, and in the same directory what it needs on the way.
        package var outputPath: String
        /// As `plannedImport` said; no file may become larger.
        package var outputBytes: UInt64
        /// As of a training run.
        package var controlGroup: String?
        package init(files: [SourceFile], outputPath: String, outputBytes: UInt64, controlGroup: String?) {
            self.files = files
            self.outputPath = outputPath
            self.outputBytes = outputBytes
            self.controlGroup = controlGroup
        }
    }

    package struct GenerateOrder: Codable, Sendable {
        package var request: GenerateRequest
        package var modelPath: String
        package var adapterDirectory: String?
        package var budgetBytes: UInt64
        package init(request: GenerateRequest, modelPath: String, adapterDirectory: String?, budgetBytes: UInt64) {
            self.request = request
            self.modelPath = modelPath
            self.adapterDirectory = adapterDirectory
            self.budgetBytes = budgetBytes
        }
    }

    package struct ImportAdapterOrder: Codable, Sendable {
        package var tensorsPath: String
        package var configPath: String?
        package var modelPath: String
        /// What the model is called, for the adapter's own record.
        package var baseModel: String
        package var outputDirectory: String
        package var budgetBytes: UInt64
        package init(
            tensorsPath: String, configPath: String?, modelPath: String, baseModel: String, outputDirectory: String,
            budgetBytes: UInt64
        ) {
            self.tensorsPath = tensorsPath
            self.configPath = configPath
            self.modelPath = modelPath
            self.baseModel = baseModel
            self.outputDirectory = outputDirectory
            self.budgetBytes = budgetBytes
        }
    }

    package struct CombineOrder: Codable, Sendable {
        package var request: CombinationRequest
        /// In the request's order.
        package var adapterDirectories: [String]
        package var modelPath: String
        package var baseModel: String
        package var outputDirectory: String
        package var budgetBytes: UInt64
        package init(
            request: CombinationRequest, adapterDirectories: [String], modelPath: String, baseModel: String, outputDirectory: String,
            budgetBytes: UInt64
        ) {
            self.request = request
            self.adapterDirectories = adapterDirectories
            self.modelPath = modelPath
            self.baseModel = baseModel
            self.outputDirectory = outputDirectory
            self.budgetBytes = budgetBytes
        }
    }

    package struct ComposeOrder: Codable, Sendable {
        package var request: CompositionRequest
        /// In the request's order.
        package var adapterDirectories: [String]
        package var datasetPath: String
        /// `sha256:` of the data set, for the adapter's own record.
        package var datasetDigest: String
        package var modelPath: String
        package var modelDigest: String
        package var baseModel: String
        package var outputDirectory: String
        package var budgetBytes: UInt64
        package init(
            request: CompositionRequest, adapterDirectories: [String], datasetPath: String, datasetDigest: String, modelPath: String,
            modelDigest: String, baseModel: String, outputDirectory: String, budgetBytes: UInt64
        ) {
            self.request = request
            self.adapterDirectories = adapterDirectories
            self.datasetPath = datasetPath
            self.datasetDigest = datasetDigest
            self.modelPath = modelPath
            self.modelDigest = modelDigest
            self.baseModel = baseModel
            self.outputDirectory = outputDirectory
            self.budgetBytes = budgetBytes
        }
    }

    package struct MergeOrder: Codable, Sendable {
        package var format: MergeFormat?
        /// Of an adapter that has tasks, the one that is merged.
        package var task: String?
        package var adapterDirectory: String
        package var modelPath: String
        package var outputDirectory: String
        package var budgetBytes: UInt64
        /// The job whose held-out samples the result is measured on; nil: it is not measured.
        package var job: HeldOut?

        package struct HeldOut: Codable, Sendable {
            package var request: JobRequest
            package var datasetPaths: [String]
            package init(request: JobRequest, datasetPaths: [String]) {
                self.request = request
                self.datasetPaths = datasetPaths
            }
        }

        package init(
            format: MergeFormat?, task: String?, adapterDirectory: String, modelPath: String, outputDirectory: String, budgetBytes: UInt64,
            job: HeldOut?
        ) {
            self.format = format
            self.task = task
            self.adapterDirectory = adapterDirectory
            self.modelPath = modelPath
            self.outputDirectory = outputDirectory
            self.budgetBytes = budgetBytes
            self.job = job
        }
    }

    package struct ExportOrder: Codable, Sendable {
        package enum Format: String, Codable, Sendable { case config, safetensors, hubSafetensors, gguf }
        package var format: Format
        /// Of an adapter that has tasks, the one that is exported.
        package var task: String?
        package var adapterDirectory: String
        package var modelPath: String
        package var outputPath: String
        package init(format: Format, task: String?, adapterDirectory: String, modelPath: String, outputPath: String) {
            self.format = format
            self.task = task
            self.adapterDirectory = adapterDirectory
            self.modelPath = modelPath
            self.outputPath = outputPath
        }
    }
}

/// A line on a worker's stdin after its order: the signal, and the job that is meant where it is not all of them.
package struct WorkSignal: Equatable, Sendable {
    package enum Kind: String, Sendable {
        /// Drop the step, write a checkpoint, answer `stopped`.
        case stop
        /// End as an early-stopped run does, publish, answer `trained`.
        case finish
    }
    package let kind: Kind
    package let job: String?

    package init(_ kind: Kind, job: String? = nil) {
        self.kind = kind
        self.job = job
    }

    package init?(line: String) {
        let words = line.split(separator: " ")
        guard (1...2).contains(words.count), let kind = Kind(rawValue: String(words[0])) else { return nil }
        self.init(kind, job: words.count == 2 ? String(words[1]) : nil)
    }

    package var line: String { ([kind.rawValue] + [job].compactMap { $0 }).joined(separator: " ") }
}

/// Of jobs that train together.
package struct TogetherPlan: Codable, Equatable, Sendable {
    /// How many of those that were asked about, from the first.
    package var jobs: Int
    package var peakBytes: UInt64
    package var budgetBytes: UInt64
    package var spillBytes: UInt64
    /// What the worker that planned this measured of itself.
    package var processBytes: UInt64
    /// Until the last has ended, and of one after another; nil: the board was not measured.
    package var seconds: Double?
    package var secondsApart: Double?

    package init(
        jobs: Int, peakBytes: UInt64, budgetBytes: UInt64, spillBytes: UInt64, processBytes: UInt64, seconds: Double?, secondsApart: Double?
    ) {
        self.jobs = jobs
        self.peakBytes = peakBytes
        self.budgetBytes = budgetBytes
        self.spillBytes = spillBytes
        self.processBytes = processBytes
        self.seconds = seconds
        self.secondsApart = secondsApart
    }
}

/// How much of the processor a worker takes from others.
package struct WorkerScheduling: Codable, Equatable, Sendable {
    package enum Niceness: Codable, Equatable, Sendable {
        /// 0 to 19.
        case nice(Int)
        /// SCHED_IDLE: what nobody else wants.
        case idle
    }
    package var niceness: Niceness
    /// Cores' worth of time: 1.5 is all of one and half of another; nil: no limit.
    package var cpuQuota: Double?

    package init(niceness: Niceness = .nice(10), cpuQuota: Double? = nil) {
        self.niceness = niceness
        self.cpuQuota = cpuQuota
    }
}

package indirect enum WorkMessage: Codable, Sendable {
    /// What it says of one of the jobs that train together; the last of each is one that `isLast`.
    case ofJob(String, WorkMessage)
    case plan(PlanReport)
    case step(JobProgress)
    case evaluation(EvaluationReport)
    case checkpoint(step: Int)
    case log(String)
    /// Nothing else is to be said, and it gets on.
    case alive
    case generated(GenerateEvent)
    case merging(MergeEvent)
    case composing(CompositionEvent)
    case ranking(RankEvent)
    /// Bytes of the model's file so far.
    case imported(bytes: UInt64)

    /// Stopped by `WorkSignal.stop`, with a checkpoint.
    case stopped(step: Int)
    /// Left because memory became short, with a checkpoint.
    case yielded(step: Int, reason: String)
    case trained
    /// Training failed; the best adapter until then is published.
    case salvaged(Problem)
    case planned(PlanReport)
    /// Nil: each is better off alone, or does not fit beside another.
    case plannedTogether(TogetherPlan?)
    /// The last of `trainTogether`.
    case jobsEnded
    case comparedMethods(MethodTable)
    case calibrated
    case inspectedModel(ModelReport)
    /// What the import will take on the disk and, at most, in memory.
    case plannedImport(outputBytes: UInt64, peakBytes: UInt64)
    case importedModel
    case inspectedDataset(DatasetReport)
    case importedAdapter
    case composed(CompositionReport)
    case ranked(RankReport)
    case exported(path: String)
    case failure(Problem)

    /// Nothing follows this message.
    package var isLast: Bool {
        switch self {
        case .ofJob, .plan, .step, .evaluation, .checkpoint, .log, .alive, .generated, .merging, .composing, .ranking, .imported: false
        case .stopped, .yielded, .trained, .salvaged, .planned, .plannedTogether, .jobsEnded, .comparedMethods, .calibrated, .inspectedModel,
            .plannedImport, .importedModel, .inspectedDataset, .importedAdapter, .composed, .ranked, .exported, .failure:
            true
        }
    }
}
