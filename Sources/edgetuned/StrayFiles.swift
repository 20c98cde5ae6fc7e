// What deletions, exports, merges and adapters that were brought in have left when they were cut off: removed at a start, when
// nothing writes. The store decides what is needed; a file that it does not know is nobody's.
import EdgeFormats
import EdgeJobs
import Foundation
import Logging

struct StrayFiles {
    let places: Places
    let store: JobStore
    let logger: Logger

    /// A store that is gone would make strays of everything.
    static func requireStore(_ places: Places) throws {
        guard try !StoreInspection.isStore(places.store) else { return }
        let count = try [places.jobs, places.blobs].reduce(0) { try $0 + StateCheck.names(in: $1).count }
        guard count == 0 else {
            throw StoreError.damaged("\(places.store) is missing or empty, and there are \(count) blobs and jobs' directories")
        }
    }

    func remove() async throws {
        let kept = try await store.keptDirectories()
        for name in try names(in: places.jobs) {
            switch kept[name] {
            case nil: remove("\(places.jobs)/\(name)")
            case .withoutAdapter: remove("\(places.jobs)/\(name)/adapter")
            case .withAdapter: break
            }
        }
        // Foundation writes beside a file what it then renames.
        for name in try names(in: places.logs) where !name.hasSuffix(".log") || kept[String(name.dropLast(4))] == nil {
            remove("\(places.logs)/\(name)")
        }
        for name in try names(in: places.exports) {
            guard kept[name] == .withAdapter else {
                remove("\(places.exports)/\(name)")
                continue
            }
            // Staging names; what is complete has the name that clients ask for. Of merged models all: whoever has not fetched one
            // by now asks again.
            for file in try names(in: "\(places.exports)/\(name)")
            where file.hasPrefix(".") || file.hasPrefix(Daemon.mergedName) {
                remove("\(places.exports)/\(name)/\(file)")
            }
        }
        try DirectoryPublish.removeLeftovers(in: places.calibrations)
    }

    private func names(in directory: String) throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: directory)
    }

    /// What cannot be removed now is tried again at the next start.
    private func remove(_ path: String) {
        guard FileManager.default.fileExists(atPath: path) else { return }
        do {
            try FileManager.default.removeItem(atPath: path)
            logger.info("\(path) belongs to nothing and was removed")
        } catch { logger.error("\(path) cannot be removed: \(error)") }
    }
}
