// SPDX-License-Identifier: Apache-2.0

package workload

import "google.golang.org/grpc/credentials"

// CallerOf is CallerFrom without a call.
func CallerOf(info credentials.AuthInfo) Caller { return info.(authInfo).Caller }
