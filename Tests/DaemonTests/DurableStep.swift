// Names for the places that the tests of crashes and faults strike: what the program is making durable there, told from the
// operation, its path and the request that is answered.
//
//   upload      blobs/sha256-#.part is made, written, synced and renamed, and blobs synced
//   import      the store during POST of models, data sets and adapters; imports/i-#/…, which a worker writes and the daemon
//               renames to blobs/…; jobs/j-#/adapter… of an adapter that is brought in
//   submit      the store during POST of a job
//   start       jobs/j-# is made and jobs synced; cache/calibrations/… is measured once
//   run         the store meanwhile: states and events of the running job, and logs/…
//   checkpoint  jobs/j-#/checkpoints/…: a worker's
//   publish     jobs/j-#/adapter.tmp… is filled, synced and renamed: a worker's
//   action      the store during pause, resume and cancel
//   export      cache/exports/j-#/…, merged models too
//   delete      the store and what is removed during DELETE, and blobs that nobody needs any more
//   restart     a start of the daemon: its directories, the store's journal, and what it removes
//   migrate     such a start on a store of an earlier release
import EdgeWire

enum DurableStep: String, CaseIterable {
    case upload, `import`, submit, start, run, checkpoint, publish, action, export, delete, restart, migrate

    /// - Parameters:
    ///   - operation: "rename blobs/sha256-#.part", of `FaultyFiles.kind(ofPath:)`.
    ///   - request: "POST jobs", of `StubbornClient.doing`.
    init(_ operation: String, during request: String, onOldStore: Bool) {
        let words = operation.split(separator: " ", maxSplits: 1).map(String.init)
        let (verb, path) = (words[0], words.count > 1 ? words[1] : "")
        let isBringing = request == "POST adapters"
        self =
            switch path {
            case _ where request == StubbornClient.starting: onOldStore ? .migrate : .restart
            case _ where path.hasPrefix("cache/exports"): .export
            case _ where path.hasPrefix("imports"): .import
            // Whoever reads one works on something else.
            case _ where path.hasPrefix("blobs") && verb != "open": verb == "unlink" ? .delete : .upload
            case _ where path.hasPrefix("jobs/j-#/checkpoints"): request.hasPrefix("DELETE") ? .delete : .checkpoint
            case _ where path.hasPrefix("jobs/j-#/adapter"):
                isBringing ? .import : request.hasPrefix("DELETE") ? .delete : .publish
            case _ where path.hasPrefix("jobs/") || path == "jobs":
                isBringing ? .import : request.hasPrefix("DELETE") ? .delete : .start
            case _ where path.hasPrefix("cache/calibrations"): .start
            default: Self.ofStore(during: request)
            }
    }

    private static func ofStore(during request: String) -> DurableStep {
        switch request {
        case "POST jobs": .submit
        case "POST models", "POST datasets", "POST adapters", "GET imports": .import
        case "PATCH blobs": .upload
        case _ where request.hasPrefix("DELETE"): .delete
        case _ where request.hasPrefix("POST jobs "): .action
        default: .run
        }
    }
}
