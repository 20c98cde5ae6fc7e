// Bodies of requests and the words in their paths: JSON that any member of the group may send.
//
// Claims: no body traps; every refusal is a Problem, or an InvalidRequest of a job; a request that is taken has only names that
// are safe as file names, and goes over the wire and comes back equal; the heap holds at most 512 bytes for each byte of the body.
import EdgeJobs
import EdgeWire
import Foundation

extension FuzzTarget {
    /// A byte that chooses the route, and the body.
    static let httpBody = FuzzTarget(
        name: "http-body", longestInput: 2048, heap: HeapClaim(bytesPerByte: 512, fixedBytes: 512 << 10),
        errors: [Problem.self, InvalidRequest.self]
    ) { bytes in
        guard let route = bytes.first else { return }
        let body = Data(bytes.dropFirst())
        switch route % 6 {
        case 0:
            let request = try BodyKeys.job.decode(JobRequest.self, body)
            try request.validate()
            try comesBack(request, .job)
            try BrokenClaim.unless(request.name.map(isFileName) ?? true, "a job's name is a file's")
        case 1:
            let request = try BodyKeys.model.decode(ModelRequest.self, body)
            try request.validate()
            try comesBack(request, .model)
            try BrokenClaim.unless(isFileName(request.name), "a model's name is a file's")
        case 2:
            let request = try BodyKeys.importing.decode(ImportRequest.self, body)
            try comesBack(request, .importing)
            let digest = try BlobDigest(request.blob)
            try BrokenClaim.unless(isFileName("sha256-" + digest.hex), "a digest is a file's name")
        case 3: try comesBack(try BodyKeys.importingAdapter.decode(AdapterImportRequest.self, body), .importingAdapter)
        case 4: try comesBack(try BodyKeys.generate.decode(GenerateRequest.self, body), .generate)
        default:
            // A segment of a path.
            let word = String(decoding: body, as: UTF8.self)
            try BrokenClaim.unless(!Wire.isName(word) || isFileName(word), "a name is a file's")
            try BrokenClaim.unless(!JobID.isValid(word) || isFileName(word), "a job's id is a file's name")
            _ = try BlobDigest(word)
        }
    }

    private static func comesBack<Request: Codable & Equatable>(_ request: Request, _ keys: BodyKeys) throws {
        let again = try keys.decode(Request.self, try Wire.encoder().encode(request))
        try BrokenClaim.unless(again == request, "\(Request.self) comes back")
    }

    private static func isFileName(_ name: String) -> Bool {
        !name.isEmpty && name != "." && name != ".." && !name.contains("/") && !name.utf8.contains(0) && name.utf8.count <= 255
    }
}
