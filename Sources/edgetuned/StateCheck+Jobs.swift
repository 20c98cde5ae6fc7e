// Directories of jobs: checkpoints and adapters against their checksums, and what interrupted work has left.
import EdgeFormats
import EdgeJobs
import EdgeTrain
import EdgeWire
import Foundation

extension StateCheck {
    mutating func checkJobDirectories() throws {
        let adapterJobs = Set(contents.adapters.map(\.job))
        for name in try Self.names(in: places.jobs) {
            let directory = "\(places.jobs)/\(name)"
            guard JobID.isValid(name), Self.isDirectory(directory) else {
                let reason = "is no job's directory"
                report.add(.leftover, "jobs/\(name)", reason, done: try putAside(directory, because: reason))
                continue
            }
            guard store == nil || contents.jobs[name] != nil || adapterJobs.contains(name) else {
                let reason = "the store has no such job or adapter"
                report.add(.leftover, "directory of \(name)", reason, done: try putAside(directory, because: reason))
                continue
            }
            try removeLeftovers(in: directory, of: "job \(name)")
            if Self.isDirectory(directory + "/checkpoints") { try checkCheckpoints(of: name, directory + "/checkpoints") }
            if Self.isDirectory(directory + "/adapter"), store != nil, !adapterJobs.contains(name) {
                report.add(
                    .note, "job \(name)", "its adapter was being published when it ended; its next run publishes it again")
            }
        }
    }

    private mutating func checkCheckpoints(of job: String, _ directory: String) throws {
        try removeLeftovers(in: directory, of: "job \(job)")
        let files = try CheckpointStore.verify(directory: directory)
        report.checked.checkpoints += files.count
        let usable = files.last { $0.error == nil && $0.name.hasPrefix("step-") }?.name
        for file in files {
            guard let error = file.error else { continue }
            guard file.isDamaged else {
                report.add(.note, "\(file.name) of job \(job)", "\(error)")
                continue
            }
            let goesOn = usable.map { "the job goes on from \($0)" } ?? "the job begins anew"
            let done = try putAside("\(directory)/\(file.name)", because: "\(error)")
            if done != nil, contents.jobs[job]?.isFinal == false {
                try JobLog(directory: places.logs).append(
                    "edgetuned check: \(file.name) is damaged and moved aside; \(goesOn)", to: job, at: now)
            }
            let tail = contents.jobs[job]?.isFinal == false ? "; \(goesOn)" : ""
            report.add(.damage, "\(file.name) of job \(job)", "\(error)\(tail)", done: done)
        }
    }

    mutating func checkAdapters() throws {
        guard let store else { return }
        for adapter in contents.adapters.sorted(by: { $0.name < $1.name }) {
            report.checked.adapters += 1
            let subject = "adapter \"\(adapter.name)\" of \(adapter.job)"
            let directory = "\(places.jobs)/\(adapter.job)/adapter"
            let reason: String
            do {
                guard Self.isDirectory(directory) else { throw AdapterError.missingFile("its directory") }
                if try AdapterArtifact.verify(directory: directory) == .withoutChecksums {
                    report.add(.note, subject, "was published before there were checksums; its tensors have the frame's own")
                }
                continue
            } catch { reason = Problem(workError: error).detail }
            var done: String?
            if mode == .repair {
                if Self.isDirectory(directory) { try quarantine.take(directory, because: reason) }
                try quarantine.take(rows: try store.takeOut(.adapter(adapter.name)), of: "adapters", because: reason)
                done = "moved aside, with its record"
            }
            report.add(.damage, subject, reason, done: done)
        }
    }

    mutating func checkLeftovers() throws {
        guard store != nil else { return }
        let imports = Set(contents.imports.map(\.id))
        for name in try Self.names(in: places.imports) where !imports.contains(name) {
            report.add(.leftover, "imports/\(name)", "no import has it: the next start removes it")
        }
        for name in try Self.names(in: places.logs) where contents.jobs[(name as NSString).deletingPathExtension] == nil {
            let reason = "the store has no such job"
            report.add(.leftover, "logs/\(name)", reason, done: try putAside("\(places.logs)/\(name)", because: reason))
        }
    }

    /// Files that were being written under another name than their own.
    private mutating func removeLeftovers(in directory: String, of owner: String) throws {
        let names = try DirectoryPublish.leftovers(in: directory)
        guard !names.isEmpty else { return }
        if mode == .repair { try DirectoryPublish.removeLeftovers(in: directory) }
        report.add(
            .leftover, owner, "\(names.joined(separator: ", ")) of a write that was cut off",
            done: mode == .repair ? "removed" : nil)
    }
}
