// The walk of `edgetuned check` over a state directory: the job store first, for it says what must be there; then blobs, the
// jobs' directories, and what work that was cut off has left. Files are read a piece at a time.
import EdgeFormats
import EdgeJobs
import EdgeTrain
import EdgeWire
import Foundation

struct StateCheck {
    enum Mode { case look, repair }

    let places: Places
    let mode: Mode
    let now: Date
    var report: CheckReport
    var quarantine: Quarantine
    /// Nil when the store cannot be read: then nobody knows what must be there.
    var store: StoreInspection?
    var contents = StoreContents()
    var storeWasRebuilt = false

    init(places: Places, mode: Mode, now: Date) {
        self.places = places
        self.mode = mode
        self.now = now
        report = CheckReport(state: places.state)
        quarantine = Quarantine(places: places, now: now)
    }

    mutating func run() throws -> CheckReport {
        try checkStore()
        report.checked.jobs = contents.jobs.count
        report.checked.models = contents.models.count
        report.checked.datasets = contents.datasets.count
        let whole = try checkBlobs()
        try checkUses(whole)
        try checkJobDirectories()
        try checkAdapters()
        try checkLeftovers()
        try store?.close()
        if quarantine.isMade { report.quarantine = quarantine.directory }
        return report
    }

    /// Moves it aside when this is a repair.
    ///
    /// - Returns: what was done, for the report.
    mutating func putAside(_ path: String, because reason: String) throws -> String? {
        guard mode == .repair else { return nil }
        try quarantine.take(path, because: reason)
        return "moved aside"
    }

    static func names(in directory: String) throws -> [String] {
        guard FileManager.default.fileExists(atPath: directory) else { return [] }
        return try FileManager.default.contentsOfDirectory(atPath: directory).sorted()
    }

    static func isDirectory(_ path: String) -> Bool {
        var status = stat()
        return lstat(path, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }
}
