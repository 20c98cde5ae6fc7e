// The daemon's configuration: a strict YAML file, the options of the command line, and systemd's or XDG's directories,
// in this order of growing distance. An unknown key is an error with its line.
import EdgeJobs
import EdgeWire
import EdgeYAML
import Foundation

/// The file's keys. Everything has a default, and an empty file is a valid one.
struct DaemonConfig: Decodable, Equatable, Sendable {
    /// Path of the socket, when systemd does not hand one over.
    var socket: String?
    var stateDir: String?
    var cacheDir: String?
    /// Upper bound of every job's own `memory_budget`; its default, too.
    var memoryBudget = "75%"
    /// Worker threads of a job that does not say; nil: all cores.
    var threads: Int?
    /// Steps between checkpoints of a job that does not say.
    var defaultSaveSteps = 50
    /// Jobs that are not finished.
    var queuedJobs = WireLimit.queuedJobs
    /// Of one user, who is no admin.
    var queuedJobsPerUser = 100
    /// Bytes of blobs per user, who is no admin: what is there, what is on its way in, and what imports will make; nil: only
    /// the disk is the limit.
    var blobBytesPerUser: UInt64?
    /// Its members may submit and see jobs, and control their own.
    var userGroup = "edgetune"
    /// Its members, and root, may do all.
    var adminGroup = "edgetune-admin"
    /// For one `generate` beside a running job; the job's own budget is not touched.
    var generateMemoryBudget = "25%"
    /// Seconds that a worker may take to a checkpoint when it is stopped.
    var stopTimeoutSeconds = 75

    /// `auto`, `off` or °C.
    var maxTemperature = "auto"
    /// °C below that from where a run may start.
    var temperatureHysteresis = 8.0
    /// `pause`, `run`, or the percent from which it runs.
    var onBattery = "pause"
    /// As in a job; nil: always.
    var runBetween: String?
    /// A size, a share of the disk, or `off`.
    var minFreeDisk = "512MiB"
    /// 0 to 19, or `idle`.
    var nice = "10"
    /// `150%` is one core and a half, as systemd's CPUQuota; nil: no limit.
    var cpuQuota: String?
    /// Queued jobs of one user on one base that train together, where that ends sooner; 1: each alone.
    var jobsTogether = 4
    /// How long a user's run goes on while another user waits; `off`: to its end.
    var turn = "1h"
    /// Before the third run of a job whose first two crashed without a checkpoint; four times longer with each more.
    var retryAfter = "4s"
    /// Finished jobs that are kept, and those of them that keep their events, log and checkpoints.
    var keepJobs = 10_000
    var keepLogs = 200

    init() {}

    private enum CodingKeys: String, CodingKey, CaseIterable {
        case socket, stateDir, cacheDir, memoryBudget, threads, defaultSaveSteps, queuedJobs, queuedJobsPerUser
        case blobBytesPerUser, userGroup, adminGroup, generateMemoryBudget, stopTimeoutSeconds
        case maxTemperature, temperatureHysteresis, onBattery, runBetween, minFreeDisk, nice, cpuQuota, jobsTogether, turn, retryAfter
        case keepJobs, keepLogs
    }

    init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: CodingKeys.self)
        socket = try values.decodeIfPresent(String.self, forKey: .socket)
        stateDir = try values.decodeIfPresent(String.self, forKey: .stateDir)
        cacheDir = try values.decodeIfPresent(String.self, forKey: .cacheDir)
        memoryBudget = try values.decodeIfPresent(String.self, forKey: .memoryBudget) ?? memoryBudget
        threads = try values.decodeIfPresent(Int.self, forKey: .threads)
        defaultSaveSteps = try values.decodeIfPresent(Int.self, forKey: .defaultSaveSteps) ?? defaultSaveSteps
        queuedJobs = try values.decodeIfPresent(Int.self, forKey: .queuedJobs) ?? queuedJobs
        queuedJobsPerUser = try values.decodeIfPresent(Int.self, forKey: .queuedJobsPerUser) ?? queuedJobsPerUser
        blobBytesPerUser = try values.decodeIfPresent(UInt64.self, forKey: .blobBytesPerUser)
        userGroup = try values.decodeIfPresent(String.self, forKey: .userGroup) ?? userGroup
        adminGroup = try values.decodeIfPresent(String.self, forKey: .adminGroup) ?? adminGroup
        generateMemoryBudget =
            try values.decodeIfPresent(String.self, forKey: .generateMemoryBudget) ?? generateMemoryBudget
        stopTimeoutSeconds = try values.decodeIfPresent(Int.self, forKey: .stopTimeoutSeconds) ?? stopTimeoutSeconds
        maxTemperature = try values.decodeIfPresent(String.self, forKey: .maxTemperature) ?? maxTemperature
        temperatureHysteresis =
            try values.decodeIfPresent(Double.self, forKey: .temperatureHysteresis) ?? temperatureHysteresis
        onBattery = try values.decodeIfPresent(String.self, forKey: .onBattery) ?? onBattery
        runBetween = try values.decodeIfPresent(String.self, forKey: .runBetween)
        minFreeDisk = try values.decodeIfPresent(String.self, forKey: .minFreeDisk) ?? minFreeDisk
        nice = try values.decodeIfPresent(String.self, forKey: .nice) ?? nice
        cpuQuota = try values.decodeIfPresent(String.self, forKey: .cpuQuota)
        jobsTogether = try values.decodeIfPresent(Int.self, forKey: .jobsTogether) ?? jobsTogether
        turn = try values.decodeIfPresent(String.self, forKey: .turn) ?? turn
        retryAfter = try values.decodeIfPresent(String.self, forKey: .retryAfter) ?? retryAfter
        keepJobs = try values.decodeIfPresent(Int.self, forKey: .keepJobs) ?? keepJobs
        keepLogs = try values.decodeIfPresent(Int.self, forKey: .keepLogs) ?? keepLogs
    }

    /// Nil: the installed file, or every default where there is none.
    static func read(pathOrDefault path: String?) throws -> DaemonConfig {
        if let path { return try read(path: path) }
        return FileManager.default.fileExists(atPath: defaultPath) ? try read(path: defaultPath) : DaemonConfig()
    }

    static func read(path: String) throws -> DaemonConfig {
        let text: String
        do { text = try String(contentsOfFile: path, encoding: .utf8) } catch {
            throw ConfigError("\(path) cannot be read: \(error.localizedDescription)")
        }
        let config = try StrictYAML.decode(
            DaemonConfig.self, text, knownKeys: CodingKeys.allCases.map { Wire.snakeCase($0.rawValue) }, fileName: path)
        try config.validate(path)
        return config
    }

    private func validate(_ path: String) throws {
        func require(_ condition: Bool, _ key: CodingKeys, _ allowed: String) throws {
            guard condition else { throw ConfigError("\(path): \(Wire.snakeCase(key.rawValue)): use \(allowed)") }
        }
        try require(MemoryBudget(memoryBudget) != nil, .memoryBudget, "a size such as 900MiB, or a share such as 60%")
        try require(
            MemoryBudget(generateMemoryBudget) != nil, .generateMemoryBudget,
            "a size such as 900MiB, or a share such as 25%")
        try require(threads.map { (1...256).contains($0) } ?? true, .threads, "1 to 256")
        try require((1...1_000_000).contains(defaultSaveSteps), .defaultSaveSteps, "1 to 1000000")
        try require((1...WireLimit.queuedJobs).contains(queuedJobs), .queuedJobs, "1 to \(WireLimit.queuedJobs)")
        try require(
            (1...WireLimit.queuedJobs).contains(queuedJobsPerUser), .queuedJobsPerUser, "1 to \(WireLimit.queuedJobs)")
        try require((1...600).contains(stopTimeoutSeconds), .stopTimeoutSeconds, "1 to 600")
        try require(RunPolicies.MostHeat(maxTemperature) != nil, .maxTemperature, "auto, off, or 30 to 120 (°C)")
        try require((1...40).contains(temperatureHysteresis), .temperatureHysteresis, "1 to 40 (°C)")
        try require(RunPolicies.OnBattery(onBattery) != nil, .onBattery, "pause, run, or a share such as 40%")
        try require(runBetween.map { DayWindow($0) != nil } ?? true, .runBetween, "two times of day such as 01:00-06:00")
        try require(
            minFreeDisk == Self.off || MemoryBudget(minFreeDisk) != nil, .minFreeDisk,
            "a size such as 1GiB, a share such as 5%, or off")
        try require(niceness != nil, .nice, "0 to 19, or idle")
        try require(cpuQuota == nil || cores != nil, .cpuQuota, "a share such as 150% (of one core), 1% or more")
        try require((1...8).contains(jobsTogether), .jobsTogether, "1 to 8")
        try require(turn == Self.off || TimeSpan(turn) != nil, .turn, "a time such as 1h, or off")
        try require(TimeSpan(retryAfter) != nil, .retryAfter, "a time such as 4s")
        try require((1...1_000_000).contains(keepJobs), .keepJobs, "1 to 1000000")
        try require((0...1_000_000).contains(keepLogs), .keepLogs, "0 to 1000000")
    }

    private static let off = "off"

    /// Where the package installs it.
    static let defaultPath = "/etc/edgetuned/edgetuned.yaml"
}

/// The keys as values; texts have been checked when they were read.
extension DaemonConfig {
    var policies: RunPolicies {
        var policies = RunPolicies()
        policies.mostHeat = RunPolicies.MostHeat(maxTemperature) ?? policies.mostHeat
        policies.hysteresis = temperatureHysteresis
        policies.onBattery = RunPolicies.OnBattery(onBattery) ?? policies.onBattery
        policies.hours = runBetween.flatMap(DayWindow.init)
        policies.leastFreeDisk = MemoryBudget(minFreeDisk)
        return policies
    }

    var scheduling: WorkerScheduling { WorkerScheduling(niceness: niceness ?? .nice(10), cpuQuota: cores) }

    private var niceness: WorkerScheduling.Niceness? {
        if nice == "idle" { return .idle }
        return Int(nice).flatMap { (0...19).contains($0) ? .nice($0) : nil }
    }

    private var cores: Double? {
        guard let cpuQuota, cpuQuota.hasSuffix("%"), let percent = Double(cpuQuota.dropLast()), (1...100_000).contains(percent)
        else { return nil }
        return percent / 100
    }

    var turnLength: Duration? { TimeSpan(turn).map { .seconds($0.seconds) } }
    var retryDelay: Duration { .seconds(TimeSpan(retryAfter)?.seconds ?? 4) }
}

struct ConfigError: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}

/// Directories and socket of this run, from the most to the least specific: option, file, systemd, XDG.
struct Places: Equatable, Sendable {
    let socket: String
    let state: String
    let cache: String

    init(
        config: DaemonConfig, socketOption: String?, stateOption: String?, environment: [String: String], uid: UInt32
    ) {
        // systemd separates several directories with colons; ours is the first.
        func given(_ key: String) -> String? {
            environment[key].flatMap { $0.split(separator: ":").first }.map(String.init)
        }
        let home = environment["HOME"] ?? "/"
        state =
            stateOption ?? config.stateDir ?? given("STATE_DIRECTORY")
            ?? (uid == 0 ? "/var/lib/edgetuned" : (environment["XDG_STATE_HOME"] ?? home + "/.local/state") + "/edgetuned")
        cache =
            config.cacheDir ?? (stateOption.map { $0 + "/cache" }) ?? given("CACHE_DIRECTORY")
            ?? (uid == 0 ? "/var/cache/edgetuned" : (environment["XDG_CACHE_HOME"] ?? home + "/.cache") + "/edgetuned")
        socket =
            socketOption ?? config.socket
            ?? (uid == 0
                ? "/run/edgetuned/edgetuned.sock"
                : environment["XDG_RUNTIME_DIR"].map { $0 + "/edgetuned/edgetuned.sock" }
                    ?? "/tmp/edgetuned-\(uid)/edgetuned.sock")
    }

    var store: String { state + "/jobs.db" }
    var jobs: String { state + "/jobs" }
    var blobs: String { state + "/blobs" }
    /// A directory per import, on the file system of the blobs: what is made there is moved there.
    var imports: String { state + "/imports" }
    var logs: String { state + "/logs" }
    var exports: String { cache + "/exports" }
    var calibrations: String { cache + "/calibrations" }
    /// Measured once for what a job computes with, by this version.
    func calibration(of request: JobRequest, kernelSet: String) -> String {
        let threads = request.threads ?? ProcessFacts.coreCount
        return "\(calibrations)/\(Edgetuned.version)-\(kernelSet)-\(request.precision.rawValue)-\(threads).json"
    }
    var lock: String { state + "/lock" }
    /// What `edgetuned check --repair` has moved aside.
    var quarantine: String { state + "/quarantine" }
}
