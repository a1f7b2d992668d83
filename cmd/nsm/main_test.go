// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"nsm": main})
}

// leakChecked fails a run that passed but left goroutines behind.
type leakChecked struct{ *testing.M }

func (m leakChecked) Run() int {
	code := m.M.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		println("goroutines left behind:", err.Error())
		return 1
	}
	return code
}

// TestScripts runs what can be seen of the binary without a mesh.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "../../test/scripts/cli",
		Setup: func(env *testscript.Env) error {
			env.Setenv("NSM_CONNECT_TO", "unix://"+env.WorkDir+"/no.sock")
			env.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix://"+env.WorkDir+"/no-identity.sock")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // else each command takes a second under the race detector
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits": exits,
		},
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
	})
}

// exits runs a command that must end with the given exit code:
//
//	exits 2 nsm get
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND ARG...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if err != nil {
		code = exitStatus(err)
	}
	if code != args[0] {
		ts.Fatalf("%v ended with %s, want %s", args[1:], code, args[0])
	}
}
