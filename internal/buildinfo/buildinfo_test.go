// SPDX-License-Identifier: Apache-2.0

package buildinfo_test

import (
	"runtime"
	"testing"

	"github.com/openvwire/nsm/internal/buildinfo"
)

func TestRead(t *testing.T) {
	info := buildinfo.Read()
	if info.Version == "" || info.Go != runtime.Version() || info.Platform != runtime.GOOS+"/"+runtime.GOARCH {
		t.Errorf("Read() = %+v", info)
	}
}

func TestString(t *testing.T) {
	for _, tt := range []struct {
		info buildinfo.Info
		want string
	}{
		{buildinfo.Info{Version: "v1.2.3"}, "v1.2.3"},
		{buildinfo.Info{Version: "(devel)", Revision: "9ac672ca128d0123"}, "(devel) (9ac672ca128d)"},
		{buildinfo.Info{Version: "v1.2.3", Revision: "9ac6", Modified: true}, "v1.2.3 (9ac6, modified)"},
	} {
		if got := tt.info.String(); got != tt.want {
			t.Errorf("String() = %q, want %q", got, tt.want)
		}
	}
}
