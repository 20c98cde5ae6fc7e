// Models on their way in: one uploaded GGUF file, or the files of a split GGUF or of a Hugging Face directory, which the
// daemon makes into one. Names of files are keys and never paths.
import Foundation

/// One file of a model: its name where it comes from, and its bytes.
package struct ModelFile: Codable, Hashable, Sendable {
    package var name: String
    /// `sha256:` and 64 hex digits.
    package var blob: String
    package init(name: String, blob: String) {
        self.name = name
        self.blob = blob
    }
}

/// `POST /v1/models`: a model of one GGUF file (`blob`, answered with its `ModelRecord`), or of several files (`files`,
/// answered with a `ModelImportStatus`, the import going on in the daemon).
package struct ModelRequest: Codable, Equatable, Sendable {
    package var name: String
    package var blob: String?
    package var files: [ModelFile]?
    /// Where it comes from, for people: `hf:OWNER/NAME@REVISION`.
    package var source: String?

    package init(name: String, blob: String, source: String? = nil) {
        self.name = name
        self.blob = blob
        self.source = source
    }

    package init(name: String, files: [ModelFile], source: String? = nil) {
        self.name = name
        self.files = files
        self.source = source
    }

    /// The digests are not looked at.
    package func validate() throws(Problem) {
        guard Wire.isName(name) else {
            throw Problem(
                .invalidValue, "name: \"\(name.prefix(80))\" is not allowed; use 1 to 64 of A-Z a-z 0-9 . _ -")
        }
        guard (source?.utf8.count ?? 0) <= WireLimit.modelSourceBytes else {
            throw Problem(.invalidValue, "source: over \(WireLimit.modelSourceBytes) bytes")
        }
        guard let files else {
            guard blob != nil else { throw Problem(.badRequest, "\"blob\" or \"files\" is missing") }
            return
        }
        guard blob == nil else { throw Problem(.badRequest, "\"blob\" and \"files\" exclude each other") }
        guard (1...WireLimit.modelFiles).contains(files.count) else {
            throw Problem(.invalidValue, "files: \(files.count) of them; use 1 to \(WireLimit.modelFiles)")
        }
        var seen: Set<String> = []
        for file in files {
            guard ModelFile.isName(file.name) else {
                throw Problem(
                    .invalidValue, "files: \"\(file.name.prefix(80))\" is not allowed as a name",
                    hint: "1 to \(WireLimit.modelFileNameBytes) bytes without slash, .. and control characters")
            }
            guard seen.insert(file.name).inserted else {
                throw Problem(.invalidValue, "files: \"\(file.name)\" is there twice")
            }
        }
    }
}

extension ModelFile {
    package static func isName(_ name: String) -> Bool {
        (1...WireLimit.modelFileNameBytes).contains(name.utf8.count) && name != "." && !name.contains("..")
            && name.utf8.allSatisfy { $0 != UInt8(ascii: "/") && $0 >= 0x20 && $0 != 0x7F }
    }
}

/// `GET /v1/imports/{name}`: how the import of a model gets on.
package struct ModelImportStatus: Codable, Equatable, Sendable {
    package enum State: String, Codable, Sendable {
        /// Another import runs first.
        case waiting
        case running
        /// `record` is the model.
        case done
        /// `problem` says why. The uploaded files are kept when another try may succeed.
        case failed
    }
    package var name: String
    package var state: State
    package var ownerUid: UInt32
    package var createdAt: Date
    /// Of the file that is made.
    package var writtenBytes: UInt64
    package var totalBytes: UInt64
    /// What the import holds in memory at most.
    package var peakBytes: UInt64
    package var problem: Problem?
    package var record: ModelRecord?

    package init(
        name: String, state: State, ownerUid: UInt32, createdAt: Date, writtenBytes: UInt64, totalBytes: UInt64,
        peakBytes: UInt64, problem: Problem? = nil, record: ModelRecord? = nil
    ) {
        self.name = name
        self.state = state
        self.ownerUid = ownerUid
        self.createdAt = createdAt
        self.writtenBytes = writtenBytes
        self.totalBytes = totalBytes
        self.peakBytes = peakBytes
        self.problem = problem
        self.record = record
    }

    package init(done record: ModelRecord) {
        self.init(
            name: record.name, state: .done, ownerUid: record.ownerUid, createdAt: record.createdAt,
            writtenBytes: record.model.fileBytes, totalBytes: record.model.fileBytes, peakBytes: 0, record: record)
    }
}
