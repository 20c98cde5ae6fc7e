// The targets of the control plane.

extension FuzzTarget {
    static let control: [FuzzTarget] = [jobFile, httpBody, httpHead, database]
}
